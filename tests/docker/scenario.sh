#!/usr/bin/env bash
# The whole service under docker compose, from its first start to what crashes and `down` leave, as a client sees it:
#
#   bash tests/docker/scenario.sh
#
# Needs docker with compose, and curl.  It is a compose project of its own, with volumes of its own, removed at the end;
# the port FILE_STORAGE_PORT (9000) has to be free.  BIG_BYTES (1 GiB) is the size of the large file, PHOTO a picture
# to take instead of a made-up one, UPGRADE_FROM an earlier commit: then that one is started first, and what is in it has
# to be there in this one.  Ends with a non-zero code at the first thing that is not as it should be.
set -euo pipefail
cd "$(dirname "$0")/../.."

export COMPOSE_PROJECT_NAME=file-storage-scenario-$$ FILE_STORAGE_PORT=${FILE_STORAGE_PORT:-9000}
URL=http://127.0.0.1:$FILE_STORAGE_PORT
BIG_BYTES=${BIG_BYTES:-$((1024 * 1024 * 1024))}
MAX_PROCESS_MIB=200
WORK=$(mktemp -d)
AUTH=()
SECRETS=()
CHECKS=0

compose() { docker compose -f docker/compose.yaml "$@"; }
inside() { compose exec -T "$@"; }
inspect() { docker inspect --format "$2" "$(compose ps --all --quiet "$1")"; } # SERVICE FORMAT
quietly() { "$@" >"$WORK/output" 2>&1 || { cat "$WORK/output"; fail "$*"; }; }

finish() {
    local code=$?
    trap - EXIT
    [ "$code" = 0 ] || { echo "The last lines of the services:" && compose logs --tail 25; }
    touch "$WORK/stop"
    wait
    [ ! -e "$WORK/saved" ] || give "$(id -u):$(id -g)" "$WORK/saved" || true
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
. tests/docker/client.sh
wait_until_ready() { # each worker finds out for itself, and nginx goes round them: as many answers in a row as are enough
    local start=$SECONDS ready=0
    until [ $ready = 10 ]; do
        [ "$(status "$URL/readyz" --max-time 5 2>/dev/null)" = 200 ] && ready=$((ready + 1)) || ready=0
        [ $((SECONDS - start)) -lt 60 ] || fail "not ready after a minute"
        [ $ready != 0 ] || sleep 0.1
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
give() { # UID:GID FOLDER, which nobody but root may do
    docker run --rm --network none --user root --volume "$2:/folder" --entrypoint chown \
        "$(docker inspect --format '{{.Config.Image}}' "$(compose ps --all --quiet postgres)")" -R "$1" /folder
}
wait_for_health() { # SERVICE STATUS
    local start=$SECONDS
    until [ "$(inspect "$1" '{{.State.Health.Status}}')" = "$2" ]; do
        [ $((SECONDS - start)) -lt 90 ] || fail "$1 is not $2 after 90 s"
        sleep 0.2
    done
    pass "$1 is $2 after $((SECONDS - start)) s"
}
load() { # NUMBER: upload until the file `stop` is there; write down what was answered for
    local n=0
    until [ -e "$WORK/stop" ]; do
        n=$((n + 1))
        echo "$1 $n" >"$WORK/load.$1"
        if request --fail --output /dev/null --upload-file "$WORK/load.$1" "$(address "/load/$1 $n")" 2>/dev/null; then
            echo "$1 $n" >>"$WORK/kept"
        fi
    done
}
compare_load() { # every upload that was answered for, by one curl
    local line number=0 expected=$WORK/expected
    : >"$WORK/addresses" && : >"$expected"
    while read -r line; do
        number=$((number + 1))
        printf 'url = "%s"\n' "$(address "/load/$line" /download)" >>"$WORK/addresses"
        echo "$line" >>"$expected"
    done <"$WORK/kept"
    [ "$number" -gt 0 ] || fail "nothing was uploaded meanwhile"
    request --fail --config "$WORK/addresses" >"$WORK/found"
    cmp "$WORK/found" "$expected" || fail "not all that was uploaded meanwhile is there"
    pass "all $number uploads that were answered for are there"
}
spooled() { inside app find /data/spool /data/staging -type f ! -name nginx.pid | wc -l | tr -d ' '; }

if [ -n "${UPGRADE_FROM:-}" ]; then
    step "An earlier version: $(git log -1 --format='%h, %ad' --date=short "$UPGRADE_FROM")"
    mkdir "$WORK/old"
    git archive "$UPGRADE_FROM" | tar -x -C "$WORK/old"
    quietly docker compose -f "$WORK/old/docker/compose.yaml" up --detach --build --wait
    wait_until_ready
    sign_up elena
    BYTES=0
    head -c 3000000 /dev/urandom >"$WORK/of-old"
    put "$WORK/of-old" "/Раньше/старый файл 🗝.bin"
    head -c 300 /dev/urandom >"$WORK/of-old-too"
    put "$WORK/of-old-too" /small.bin
    ELENA=("${AUTH[@]}")
    AUTH=()
fi

step "From nothing"
equal "warnings of docker compose config" "$(compose config --quiet 2>&1)" ""
quietly compose build
pass "built after $SECONDS s"
start_all
pass "up and ready after $SECONDS s"
SERVERS=$(compose ps --services | sort | tr '\n' ' ')
equal "what runs" "$SERVERS" "app nginx postgres redis "
note "$(docker image ls --format '{{.Repository}}: {{.Size}}' "$COMPOSE_PROJECT_NAME-app")"
equal "migrations that are missing" "$(inside app python -m service migrate --list | grep -vc applied)" 0
if [ -n "${UPGRADE_FROM:-}" ]; then
    AUTH=("${ELENA[@]}")
    same "$WORK/of-old" "/Раньше/старый файл 🗝.bin"
    same "$WORK/of-old-too" /small.bin
    equal "the bytes in use" "$(field files "$(request "$URL/file/usage_memory")")" "$BYTES"
    log_in elena
    put "$WORK/of-old" /small.bin
    same "$WORK/of-old" /small.bin
    AUTH=()
fi

step "What the containers may do"
for service in $SERVERS; do
    processes=$(docker top "$(compose ps --quiet "$service")" -eo uid,pid,args)
    equal "$service: processes of root" "$(awk 'NR > 1 && $1 == 0' <<<"$processes")" ""
    equal "$service: writing beside the volumes" "$(inside "$service" sh -c 'touch /x /etc/x 2>/dev/null; echo $?')" 1
    equal "$service: capabilities" "$(inside "$service" grep CapBnd /proc/self/status | tr -dc 0-9)" 0000000000000000
    equal "$service: published ports" \
        "$(inspect "$service" '{{range .NetworkSettings.Ports}}{{range .}}{{.HostIp}}:{{.HostPort}} {{end}}{{end}}')" \
        "$([ "$service" != nginx ] || echo "127.0.0.1:$FILE_STORAGE_PORT ")"
    equal "$service: new privileges" "$(inside "$service" grep NoNewPrivs /proc/self/status | tr -dc 01)" 1
    equal "$service: bytes of log, restart" "$(inspect "$service" \
        '{{index .HostConfig.LogConfig.Config "max-size"}} x {{index .HostConfig.LogConfig.Config "max-file"}}, '\
'{{.HostConfig.RestartPolicy.Name}}')" "10m x 5, unless-stopped"
    equal "$service: health" "$(inspect "$service" '{{.State.Health.Status}}')" healthy
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
    SECRETS+=("$secret")
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

step "Check"
equal "check" "$(inside app python -m service check | tail -1)" "all is well"
blob=$(inside app find /data/blobs -type f -size +100k -size -9000k | head -1)
inside app cp "$blob" /data/good
inside app python -c "
import os, sys
with open(sys.argv[1], 'r+b') as file:
    byte = file.read(1)
    file.seek(0)
    file.write(bytes([byte[0] ^ 1]))
" "$blob"
code=0
inside app python -m service check --repair >"$WORK/report" || code=$?
equal "check of a file with one wrong bit" "$code" 1
grep -q "^digest: ${blob##*/}" "$WORK/report" || fail "the report does not name ${blob##*/}: $(<"$WORK/report")"
grep -q "    of [a-z]*: /" "$WORK/report" || fail "the report does not say whose file it is: $(<"$WORK/report")"
inside app mv /data/good "$blob"
equal "check with the good copy" "$(inside app python -m service check --repair | tail -1)" "all is well"

step "docker compose restart"
quietly compose restart
wait_until_ready
same "$WORK/photo" "$id"
put "$WORK/paper.pdf" "/after restart.pdf"

step "Crashes under load"
ANNA=("${AUTH[@]}")
sign_up clara
for number in 1 2 3; do load "$number" & done
kill_main app "cat /data/.lock"
kill_main nginx "cat /data/spool/*/nginx.pid"
kill_main postgres "head -1 /var/lib/postgresql/data/postmaster.pid"
kill_main redis "redis-cli info server | sed -n 's/^process_id:\([0-9]*\).*/\1/p'"
touch "$WORK/stop"
wait
rm "$WORK/stop"
compare_load
AUTH=("${ANNA[@]}")
same "$WORK/photo" "$id"
put "$WORK/photo" "/after crashes.png"
code=0
inside app python -m service check --json >"$WORK/report" || code=$?
kinds=$(grep -o '"kind": "[a-z]*"' "$WORK/report" | sort -u || true)
case "$code $kinds" in # bytes without a row are what an upload leaves that was killed before it was answered for
    '0 ' | '1 "kind": "stray"') pass "check after that: ${kinds:-all is well}" ;;
    *) fail "check after that: $code $kinds" ;;
esac

step "Without PostgreSQL"
quietly compose stop postgres
equal "a list" "$(status "$URL/file/list" --max-time 10)" 503
equal "GET /readyz" "$(status "$URL/readyz" --max-time 10)" 503
wait_for_health app unhealthy
quietly compose start postgres # not `up --wait`, which gives up as soon as it sees something unhealthy
wait_for_health app healthy
wait_until_ready

step "Without Redis"
quietly compose stop redis
equal "the cache without Redis" "$(field cache "$(request "$URL/ping/all")")" null
log_in anna
put "$WORK/paper.pdf" "/without redis.pdf"
start_all

step "What was logged"
compose logs --no-color >"$WORK/logs" 2>&1
for secret in "${SECRETS[@]}" "correct horse battery"; do
    ! grep -qF "$secret" "$WORK/logs" || fail "the log has a secret"
done
pass "no secret in $(wc -l <"$WORK/logs") lines"

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
FILE_STORAGE_TRUSTED_PROXIES=$(docker network inspect --format '{{(index .IPAM.Config 0).Gateway}}' \
    "${COMPOSE_PROJECT_NAME}_public") start_all
equal "a wrong password by way of a proxy" "$(status --header 'X-Forwarded-For: 198.51.100.7' "$URL/auth/jwt/login" \
    --data username=anna --data password=wrong)" 401
equal "where it came from" "$(field network "$(request "$URL/auth/audit?limit=1")")" 198.51.100.0/24
start_all
put "$WORK/photo" /in-the-end.png

step "Backup and restore"
SAVED_BYTES=$(field files "$(request "$URL/file/usage_memory")")
quietly inside app python -m service backup /backup --keep 2
mkdir "$WORK/saved"
quietly give 10001:10001 "$WORK/saved"
quietly compose run --rm -T --volume "$WORK/saved:/mnt" app python -m service backup /mnt --keep 14
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
equal "check" "$(inside app python -m service check | tail -1)" "all is well"
put "$WORK/paper.pdf" "/after the restore.pdf"
quietly compose down
quietly docker volume rm "${COMPOSE_PROJECT_NAME}_files" "${COMPOSE_PROJECT_NAME}_postgres"
quietly compose run --rm -T --volume "$WORK/saved:/mnt" app python -m service restore /mnt
start_all
log_in anna
same "$WORK/photo" "$id"
same "$WORK/big" /large/post.bin
equal "the bytes in use" "$(field files "$(request "$URL/file/usage_memory")")" "$SAVED_BYTES"
equal "what came after the backup" "$(status "$(address "/after the restore.pdf" /download)")" 404

step "A full disk"
quietly compose down --volumes
printf '%s\n' 'volumes:' '  files:' '    driver: local' '    driver_opts:' '      type: tmpfs' '      device: tmpfs' \
    '      o: size=100m,uid=10001,gid=10001,mode=0700' >"$WORK/full.yaml"
compose() { docker compose -f docker/compose.yaml -f "$WORK/full.yaml" "$@"; }
start_all
sign_up anna
head -c 9000000 /dev/urandom >"$WORK/part"
equal "an upload where less than MIN_FREE_SPACE is left" "$(status --upload-file "$WORK/part" "$(address /x)")" 507
quietly compose down --volumes
FILE_STORAGE_MIN_FREE_SPACE=0 start_all
sign_up anna
number=0
for kind in part photo; do # to the brim: a large body fails earlier than a small one
    until code=$(status --upload-file "$WORK/$kind" "$(address "/$kind $number")") && [ "$code" != 201 ]; do
        number=$((number + 1))
        [ "$number" -lt 100 ] || fail "100 MB have room for 100 files"
    done
    equal "an upload to a full disk" "$code" 507
done
same "$WORK/part" "/part 0"
equal "a list" "$(status "$URL/file/list")" 200
equal "a deletion" "$(status --request DELETE "$(address "/part 0")")" 204
equal "GET /readyz" "$(status "$URL/readyz")" 200
equal "bodies of refused uploads" "$(spooled)" 0
equal "check" "$(inside app python -m service check | tail -1)" "all is well"

step "All $CHECKS checks passed in $SECONDS s"
