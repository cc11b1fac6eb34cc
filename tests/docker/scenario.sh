#!/usr/bin/env bash
# The whole service under docker compose, from its first start to what crashes and `down` leave, as a client sees it:
#
#   bash tests/docker/scenario.sh
#
# Needs docker with compose, and curl.  It is a compose project of its own, with volumes of its own, removed at the end;
# the port FILE_STORAGE_PORT (9000) has to be free.  BIG_BYTES (1 GiB) is the size of the large file, PHOTO a picture
# to take instead of a made-up one.  Ends with a non-zero code at the first thing that is not as it should be.
set -euo pipefail
cd "$(dirname "$0")/../.."

export COMPOSE_PROJECT_NAME=file-storage-scenario-$$ FILE_STORAGE_PORT=${FILE_STORAGE_PORT:-9000}
URL=http://127.0.0.1:$FILE_STORAGE_PORT
BIG_BYTES=${BIG_BYTES:-$((1024 * 1024 * 1024))}
MAX_PROCESS_MIB=200
WORK=$(mktemp -d)
AUTH=()
CHECKS=0

compose() { docker compose -f docker/compose.yaml "$@"; }
inside() { compose exec -T "$@"; }
inspect() { docker inspect --format "$2" "$(compose ps --all --quiet "$1")"; } # SERVICE FORMAT
quietly() { "$@" >"$WORK/output" 2>&1 || { cat "$WORK/output"; fail "$*"; }; }

finish() {
    local code=$?
    trap - EXIT
    [ "$code" = 0 ] || { echo "The last lines of the services:" && compose logs --tail 25; }
    compose down --volumes --rmi local --timeout 10 >"$WORK/output" 2>&1 || cat "$WORK/output"
    rm -rf "$WORK"
    exit "$code"
}
trap finish EXIT

step() { printf '\n== %s\n' "$*"; }
pass() { CHECKS=$((CHECKS + 1)) && echo "ok     $*"; }
fail() { echo "WRONG  $*" && exit 1; }
equal() { if [ "$2" = "$3" ]; then pass "$1: $3"; else fail "$1: '$2' instead of '$3'"; fi; } # WHAT FOUND EXPECTED
note() { echo "       $*"; }
took() { # BYTES SECONDS
    note "$(awk -v mib="$(($1 >> 20))" -v s="$2" 'BEGIN {printf "%d MiB in %.1f s, %d MiB/s", mib, s, mib / s}')"
}
sha256() { { sha256sum 2>/dev/null || shasum -a 256; } | cut -d ' ' -f 1; }
digest() { [ -e "$1.sha256" ] || sha256 <"$1" >"$1.sha256" && cat "$1.sha256"; } # FILE, which never changes
size() { wc -c <"$1" | tr -d ' '; }
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p" <<<"$2"; } # NAME FLAT-JSON-OBJECT
encode() { printf %s "$1" | od -A n -v -t x1 | sed 's/  *\(..\)/%\1/g' | tr -d ' \n'; }

request() { curl --silent --show-error --max-time 1800 ${AUTH[@]+"${AUTH[@]}"} "$@"; }
status() { request --output /dev/null --write-out '%{http_code}' "$@"; }
address() { echo "$URL/file${2:-}?path=$(encode "$1")"; } # PATH-OR-ID [/download]
upload() { # WHAT FILE CURL-ARGUMENTS
    local seconds
    seconds=$(request --fail --output "$WORK/reply" --write-out '%{time_total}' "${@:3}")
    equal "$1" "$(field sha256 "$(<"$WORK/reply")")" "$(digest "$2")"
    [ "$(size "$2")" -lt 100000000 ] || took "$(size "$2")" "$seconds"
    BYTES=$((BYTES + $(size "$2")))
}
put() { upload "PUT $2" "$1" --upload-file "$1" "$(address "$2")"; } # FILE PATH
post() { upload "form $2" "$1" --form-string "path=$2" --form "file=@$1" "$URL/file"; } # FILE PATH
same() { # FILE PATH-OR-ID
    equal "download $2" "$(request --fail "$(address "$2" /download)" | sha256)" "$(digest "$1")"
}
log_in() { # NAME
    local reply
    reply=$(curl --silent --fail "$URL/auth/jwt/login" --data "username=$1" --data 'password=correct horse battery')
    AUTH=(--header "Authorization: Bearer $(field access_token "$reply")")
    REFRESH=$(field refresh_token "$reply")
}
sign_up() { # NAME
    equal "register $1" "$(status "$URL/auth/register" --header 'Content-Type: application/json' \
        --data "{\"username\": \"$1\", \"password\": \"correct horse battery\"}")" 201
    log_in "$1"
}
wait_until_ready() {
    local start=$SECONDS
    until [ "$(status "$URL/readyz" --max-time 5 2>/dev/null)" = 200 ]; do
        [ $((SECONDS - start)) -lt 60 ] || fail "not ready after a minute"
        sleep 0.1
    done
}
start_all() { quietly compose up --detach --wait && wait_until_ready; }
kill_main() { # SERVICE COMMAND: kill -9 the process whose id the command prints; its container has to start again
    local before start=$SECONDS
    before=$(inspect "$1" '{{.RestartCount}}')
    inside "$1" sh -c "kill -9 \$($2)" || true # its shell dies with it
    until [ "$(inspect "$1" '{{.RestartCount}}')" -gt "$before" ]; do
        [ $((SECONDS - start)) -lt 30 ] || fail "$1 was not started again"
        sleep 0.1
    done
    wait_until_ready
    pass "$1 was killed and is back after $((SECONDS - start)) s"
}
spooled() { inside app find /data/spool /data/staging -type f ! -name nginx.pid | wc -l | tr -d ' '; }

step "From nothing"
equal "warnings of docker compose config" "$(compose config --quiet 2>&1)" ""
quietly compose build
pass "built after $SECONDS s"
start_all
pass "up and ready after $SECONDS s"
SERVERS=$(compose ps --services | sort | tr '\n' ' ')
equal "what runs" "$SERVERS" "app nginx postgres redis "

step "What the containers may do"
for service in $SERVERS; do
    processes=$(docker top "$(compose ps --quiet "$service")" -eo uid,pid,args)
    equal "$service: processes of root" "$(awk 'NR > 1 && $1 == 0' <<<"$processes")" ""
    equal "$service: writing beside the volumes" "$(inside "$service" sh -c 'touch /x /etc/x 2>/dev/null; echo $?')" 1
    equal "$service: capabilities" "$(inside "$service" grep CapBnd /proc/self/status | tr -dc 0-9)" 0000000000000000
    equal "$service: published ports" \
        "$(inspect "$service" '{{range .NetworkSettings.Ports}}{{range .}}{{.HostIp}}:{{.HostPort}} {{end}}{{end}}')" \
        "$([ "$service" != nginx ] || echo "127.0.0.1:$FILE_STORAGE_PORT ")"
done
for target in app:9000 postgres:5432 redis:6379; do
    for ip in $(inspect "${target%:*}" '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}'); do
        if inside nginx curl --silent --max-time 2 --output /dev/null "telnet://$ip:${target#*:}" </dev/null; then
            fail "nginx reaches $target at $ip"
        fi
    done
    pass "nginx has no way to $target"
done
equal "modes of the app's secrets" \
    "$(inside app sh -c 'stat -c "%a %u" /run/secrets/*' | sort | uniq -c | tr -s ' ')" " 2 400 10001"
password=$(inside app cat /run/secrets/database_url | sed 's/.*:\([^:@]*\)@.*/\1/')
compose ps --all --quiet | xargs docker inspect >"$WORK/inspect"
for secret in "$password" "$(inside app cat /run/secrets/jwt_secret)" \
              "$(inside postgres cat /docker-entrypoint-initdb.d/password)"; do
    [ ${#secret} = 64 ] || fail "a secret has ${#secret} characters"
    ! grep -qF "$secret" "$WORK/inspect" || fail "docker inspect shows a secret"
done
pass "docker inspect shows no secret"

step "Accounts"
sign_up boris
OTHER=("${AUTH[@]}")
sign_up anna
BYTES=0
equal "a wrong password" "$(status "$URL/auth/jwt/login" --data username=anna --data password=wrong)" 401
equal "no token" "$(AUTH=() && status "$URL/file/list")" 401
equal "an empty list" "$(request "$URL/file/list")" '{"files":[]}'

step "Uploads"
inside app python - png >"$WORK/photo" <<'PYTHON'
import struct, sys, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
width, height = 1200, 800
rows = b"".join(b"\0" + bytes(v for x in range(width) for v in (x % 256, y % 256, (x * y) % 256)) for y in range(height))
sys.stdout.buffer.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
                        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
PYTHON
[ -z "${PHOTO:-}" ] || cp "$PHOTO" "$WORK/photo"
inside app python - >"$WORK/paper.pdf" <<'PYTHON'
import sys
text = b"BT /F1 24 Tf 72 720 Td (A page) Tj ET"
objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
           b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
           b"<</Length %d>>stream\n%s\nendstream" % (len(text), text), b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
pdf, places = b"%PDF-1.4\n", []
for number, body in enumerate(objects, 1):
    places.append(len(pdf))
    pdf += b"%d 0 obj%s\nendobj\n" % (number, body)
table = b"".join(b"%010d 00000 n \n" % place for place in places)
sys.stdout.buffer.write(pdf + b"xref\n0 6\n0000000000 65535 f \n" + table
                        + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % len(pdf))
PYTHON
head -c "$BIG_BYTES" /dev/urandom >"$WORK/big"
NAMES=("/Фотографии/Отпуск 2020/море и горы.png" "/写真/夏休み/富士山.png" "/🏔️ trips/🦊.png")
for name in "${NAMES[@]}"; do put "$WORK/photo" "$name"; done
post "$WORK/photo" "/photo.png"
post "$WORK/paper.pdf" "/homework/bumaga-бумага.pdf"
equal "the large file without a token" "$(AUTH=() && status --upload-file "$WORK/big" "$(address /big)")" 401
equal "what that left" "$(spooled)" 0
put "$WORK/big" /large/put.bin
post "$WORK/big" /large/post.bin
equal "bodies that were left over" "$(spooled)" 0
peaks=$(inside app sh -c 'grep -h VmHWM /proc/[0-9]*/status' | awk '{print int($2 / 1024)}' | sort -n | tr '\n' ' ')
for peak in $peaks; do
    [ "$peak" -le "$MAX_PROCESS_MIB" ] || fail "peaks of the app's processes, in MiB: $peaks"
done
pass "peaks of the app's processes, in MiB: $peaks"
note "peak of the container with the disk cache, in MiB: $(inside app sh -c '
    cat /sys/fs/cgroup/memory.peak 2>/dev/null || cat /sys/fs/cgroup/memory/memory.max_usage_in_bytes' |
    awk '{print int($1 / 2^20)}')"

step "Reading"
request "$URL/file/list" | sed 's/" *: */" : /g' >"$WORK/list"
for name in "${NAMES[@]}" /photo.png /large/put.bin; do
    grep -qF "\"path\" : \"$name\"" "$WORK/list" || fail "not in the list: $name"
    pass "listed: $name"
done
id=$(field id "$(request "$(address "${NAMES[0]}" /info)")")
same "$WORK/photo" "${NAMES[0]}"
same "$WORK/photo" "$id"
same "$WORK/photo" "${NAMES[1]}"
same "$WORK/photo" "${NAMES[2]}"
same "$WORK/paper.pdf" "/homework/bumaga-бумага.pdf"
same "$WORK/big" /large/put.bin
took "$BIG_BYTES" "$(request "$(address /large/post.bin /download)" --output "$WORK/copy" --write-out '%{time_total}')"
cmp "$WORK/big" "$WORK/copy" || fail "download /large/post.bin"
pass "download /large/post.bin: the same bytes"
rm "$WORK/copy"
from=$((BIG_BYTES / 3))
range=$from-$((from + 99999))
equal "bytes $range" "$(request "$(address /large/put.bin /download)" --range "$range" | sha256)" \
    "$(tail -c "+$((from + 1))" "$WORK/big" | head -c 100000 | sha256)"
equal "their status" "$(status "$(address /large/put.bin /download)" --range "$range")" 206
etag=$(request --head "$(address "$id" /download)" | sed -n 's/^etag: *\(.*\)\r$/\1/ip')
equal "If-None-Match: $etag" "$(status "$(address "$id" /download)" --header "If-None-Match: $etag")" 304
equal "the bytes in use" "$(field files "$(request "$URL/file/usage_memory")")" "$BYTES"
for what in "$id" "${NAMES[0]}"; do
    equal "another user asks for $what" "$(AUTH=("${OTHER[@]}") && status "$(address "$what" /download)")" 404
done

step "docker compose restart"
quietly compose restart
wait_until_ready
same "$WORK/photo" "$id"
put "$WORK/paper.pdf" "/after restart.pdf"

step "Crashes"
kill_main app "cat /data/.lock"
same "$WORK/photo" "$id"
kill_main nginx "cat /data/spool/*/nginx.pid"
put "$WORK/photo" "/after crash.png"
kill_main postgres "head -1 /var/lib/postgresql/data/postmaster.pid"
same "$WORK/photo" "/after crash.png"
quietly compose stop redis
equal "the cache without Redis" "$(field cache "$(request "$URL/ping/all")")" null
log_in anna
put "$WORK/paper.pdf" "/without redis.pdf"
start_all

step "docker compose down and up"
quietly compose down
equal "containers left" "$(compose ps --all --quiet)" ""
start_all
same "$WORK/photo" "$id"
same "$WORK/big" /large/put.bin
reply=$(request --fail "$URL/auth/jwt/refresh" --header 'Content-Type: application/json' \
    --data "{\"refresh_token\": \"$REFRESH\"}")
AUTH=(--header "Authorization: Bearer $(field access_token "$reply")")
equal "the session goes on" "$(field username "$(request "$URL/auth/me")")" anna
equal "the bytes in use" "$(field files "$(request "$URL/file/usage_memory")")" "$BYTES"

step "Another setting"
started=$(inspect nginx '{{.State.StartedAt}}')
FILE_STORAGE_MAX_UPLOAD_SIZE=100 start_all
[ "$(inspect nginx '{{.State.StartedAt}}')" != "$started" ] || fail "nginx goes on with the old configuration"
pass "nginx was started again"
equal "an upload above the new limit" "$(status --upload-file "$WORK/photo" "$(address /too-big)")" 413
start_all
put "$WORK/photo" /in-the-end.png

step "Backup and restore"
quietly inside app python -m service backup /backup --keep 2
put "$WORK/paper.pdf" "/after the backup.pdf"
quietly compose down
quietly docker volume rm "${COMPOSE_PROJECT_NAME}_files" "${COMPOSE_PROJECT_NAME}_postgres"
quietly compose run --rm -T app python -m service restore /backup
start_all
equal "the session of before" "$(status "$URL/auth/me")" 401
log_in anna
same "$WORK/photo" "$id"
same "$WORK/big" /large/put.bin
same "$WORK/photo" /in-the-end.png
equal "what came after the backup" "$(status "$(address "/after the backup.pdf" /download)")" 404

step "All $CHECKS checks passed in $SECONDS s"
