# What scenario.sh asks of the service: functions over curl.  URL, WORK, AUTH and BYTES are the scenario's.

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
