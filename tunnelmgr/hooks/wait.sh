#!/bin/sh
# tunnelmgr-wait: wait until this agent's tunnel to the registry is up.
#
# usage: tunnelmgr-wait [--soft]
#
# It requests http://localhost:5000/.well-known/tunnelmgr to identify the listener, then /v2/ to check the registry.
# If /proc/net shows the owner of the listener, it must be root or the user that the controller logs in as.
# Needs curl or wget (GNU's, wget2 or busybox's). Writes to stderr only, and never reads stdin.
#
# Environment:
#   TUNNELMGR_WAIT      limit in seconds for the whole run, 1 to 86400 (120)
#   TUNNELMGR_REGISTRY  HOST:PORT to wait for (localhost:5000)
#   TUNNELMGR_USER      the user that the controller logs in as, or its uid (tunnel)
# Exit status:
#   0   ready
#   69  another process answers on the port, or holds it
#   75  not ready in time (0 with --soft)
#   77  the controller refuses this agent
#   78  misconfigured: no curl or wget, a bad setting, an unknown option

set -u
LC_ALL=C
export LC_ALL
# The registry is on this machine, so no proxy must be used.
unset http_proxy HTTP_PROXY all_proxy ALL_PROXY

# Hundredths of a second.
patience=500           # for one answer
foreign_patience=300  # for which a wrong answer is tolerated: its process may be about to end
silent_patience=2000   # the same for a port that accepts connections and is silent: a lost tunnel's sshd does so for
                       # up to ClientAliveInterval x ClientAliveCountMax (10 s as prepared by tunnelmgr)

say() { printf 'tunnelmgr: %s\n' "$*"; }

fail() {
    code=$1
    shift
    say "$@"
    exit "$code"
}

# Sets $whole and $part, the time in seconds and hundredths. The uptime is preferred, because the clock of a new machine
# jumps. Without it, the hundredths count as elapsed.
clock() {
    part=99
    if read -r uptime rest 2>/dev/null </proc/uptime; then
        whole=${uptime%%.*}
        part=${uptime#*.}
        part=${part#0}
    else
        whole=$(date +%s)
    fi
}

start_clock() {
    clock
    start_whole=$whole
    start_part=$part
    [ -r /proc/uptime ] || start_part=0
}

# Sets $elapsed and $left, in hundredths. A tenth of a second is kept for starting and ending.
tick() {
    clock
    elapsed=$(((whole - start_whole) * 100 + part - start_part))
    left=$((limit * 100 - elapsed - 10))
}

# Sleeps for $1 hundredths; for whole seconds if sleep accepts no fractions.
nap() {
    if [ "$fractions" = yes ]; then
        hundredths=$(($1 % 100))
        [ "$hundredths" -ge 10 ] || hundredths=0$hundredths
        exec sleep "$(($1 / 100)).$hundredths"
    fi
    exec sleep $(($1 / 100))
}

by_curl() { exec curl -q -g -s -i --noproxy '*' -A tunnelmgr-wait "http://$1" 2>/dev/null; }
by_wget() {
    exec wget --no-config -nv -t 1 --max-redirect=0 --save-headers --content-on-error -U tunnelmgr-wait -O - \
        "http://$1" 2>&1
}
by_busybox() { exec wget -q -U tunnelmgr-wait -O - "http://$1" 2>&1; }

# Prints the answer of http://$1 within $2 hundredths, and the client's exit status. The time limit is enforced here,
# because wget has no limit for the whole request, and busybox's often none at all.
ask_bounded() {
    "$client" "$1" &
    asked=$!
    (
        napping=
        trap 'kill "$napping"; exit 0' TERM
        nap "$2" &
        napping=$!
        wait "$napping"
        kill -9 "$asked"
    ) >/dev/null &
    guard=$!
    wait "$asked"
    outcome=$?
    kill "$guard"
    printf '\nended %s\n' "$outcome"
}

# Requests http://$1. Sets $reply (at most 4 KB, printable) and $status: an HTTP status, or `closed` (no listener),
# `silent` (accepted the connection, sent no answer), `garbage` (not HTTP). Sets $late if no time was left.
ask() {
    tick
    bound=$patience
    [ "$left" -ge "$bound" ] || bound=$left
    status=silent
    reply=
    if [ "$bound" -lt "$briefest" ]; then
        late=yes
        return 0
    fi
    reply=$(ask_bounded "$1" "$bound" 2>/dev/null | dd bs=1 count=4096 2>/dev/null | tr -cd '\n\040-\176')
    ended=${reply##*ended }
    case $ended in
        '' | *[!0-9]*) ended='cut' ;;
    esac
    case $client in
        by_curl) judge_curl ;;
        by_wget) judge_wget ;;
        by_busybox) judge_busybox ;;
    esac
}

# Sets $status from a status line at the start of $1.
take_status() {
    status=${1#* }
    status=${status%%[!0-9]*}
    [ -n "$status" ] || status=garbage
}

judge_curl() {
    case $reply in
        HTTP/*) take_status "$reply" ;;
        *)
            case $ended in
                # 3 and 6: it was built without IPv6.
                3 | 6 | 7) status=closed ;;
                1 | 8) status=garbage ;;
            esac
            ;;
    esac
}

judge_wget() {
    case $reply in
        HTTP/*) take_status "$reply" ;;
        *'URL:http'*) status=garbage ;;
        *) judge_complaint ;;
    esac
}

judge_busybox() {
    case $reply in
        *'server returned error: HTTP/'*) take_status "${reply#*server returned error: HTTP/}" ;;
        *'server returned error'*) status=garbage ;;
        *)
            if [ "$ended" = 0 ]; then status=200; else judge_complaint; fi
            ;;
    esac
}

judge_complaint() {
    case $reply in
        *onnection\ refused* | *"can't connect"* | *'annot assign'* | *unreachable* | *'not supported'* | \
            *'bad address'* | *'nable to resolve'* | *'nvalid host'*) status=closed ;;
    esac
}

# Sets $field to the string that $2 has under the key $1.
take_field() {
    field=${2#*\""$1"\"}
    field=${field#*\"}
    field=${field%%\"*}
}

# Sets $message to the gate's message in a refusal.
take_message() {
    message=
    case $reply in
        *'"tunnelmgr: '*)
            message=${reply#*\"tunnelmgr: }
            message=${message%%\"*}
            ;;
    esac
}

# Sets $holder to the uid that listens on $1, a loopback address, if it is neither $owner nor root; else to nothing.
# sshd listens with the uid of the user that has logged in (measured with OpenSSH 9.2). Of several listeners that fit an
# address, the kernel takes the one for exactly this address. Addresses are in /proc/net/tcp and tcp6 (proc(5)) as the
# machine's memory has them, so each is searched for in both byte orders.
find_holder() {
    holder=
    [ -n "$owner" ] || return 0
    case $1 in
        127.0.0.1:*) family=4 ;;
        '[::1]':*) family=6 ;;
        *) return 0 ;;
    esac
    exactly=
    anywhere=
    read_listeners /proc/net/tcp
    read_listeners /proc/net/tcp6
    for uid in ${exactly:-$anywhere}; do
        case $uid in "$owner" | 0) ;; *) holder=$uid ;; esac
    done
}

# Adds to $exactly and $anywhere the uids of the listeners that the table $1 has for the port in $family.
read_listeners() {
    [ -r "$1" ] || return 0
    while read -r _ place _ state _ _ _ uid _; do
        case $state in
            st) continue ;;
            0A) ;;
            *) break ;; # the listening sockets come first
        esac
        [ "${place#*:}" = "$hex_port" ] || continue
        case $family-${place%:*} in
            4-0100007F | 4-7F000001 | 4-0000000000000000FFFF00000100007F | 4-00000000000000000000FFFF7F000001 | \
                6-00000000000000000000000001000000 | 6-00000000000000000000000000000001) exactly="$exactly $uid" ;;
            4-00000000 | ?-00000000000000000000000000000000) anywhere="$anywhere $uid" ;;
        esac
    done <"$1"
}

# Sets $verdict on the listener at http://$1: `closed`, `silent`, `foreign`, `refused`, `starting` or `ours`.
identify() {
    find_holder "$1"
    verdict=foreign
    [ -z "$holder" ] || return 0
    ask "$1/.well-known/tunnelmgr"
    take_message
    case $status in
        closed | silent) verdict=$status ;;
        200)
            verdict=foreign
            [ "$ended" = 0 ] || return 0
            case $reply in *'"agent"'*) ;; *) return 0 ;; esac
            case $reply in *'"group"'*) ;; *) return 0 ;; esac
            case $reply in *'"controller"'*) verdict=ours identity=$reply ;; esac
            ;;
        403) if [ -n "$message" ]; then verdict=refused; else verdict=foreign; fi ;;
        *) if [ -n "$message" ]; then verdict=starting; else verdict=foreign; fi ;;
    esac
}

# Sets $verdict on the registry: as `identify`, with `ready` and `starting` (it does not answer yet) for `ours`.
# Each address of localhost is checked, because docker may use either; only the first one is required.
check_registry() {
    absent=
    for address in $addresses; do
        identify "$address"
        case $verdict in
            ours) ;;
            closed) [ "$address" != "$first" ] || absent=yes ;;
            *) return 0 ;;
        esac
    done
    verdict=closed
    [ -z "$absent" ] || return 0
    ask "$first/v2/"
    take_message
    case $status in
        200) verdict=ready ;;
        403) verdict=refused ;;
        *) verdict=starting ;;
    esac
}

# Sets $seen, the last verdict as a sentence, and $there, the address that it is about.
describe() {
    there=$address
    case $verdict in
        closed) seen="nothing listens there yet" ;;
        silent) seen="the port accepts connections but does not answer" ;;
        foreign)
            seen="another process answers on $address"
            [ -z "$holder" ] || seen="uid $holder listens on $address"
            ;;
        *)
            case $status in
                [0-9]*) seen="the tunnel is up, but the registry is not ready: HTTP $status${message:+, $message}" ;;
                *) seen="the tunnel is up, but the registry does not answer" ;;
            esac
            ;;
    esac
}

give_up_on_others() {
    case $verdict in
        foreign)
            if [ -n "$holder" ]; then
                say "uid $holder listens on $there, not $user (uid $owner), the user that the controller logs in as." \
                    "Do not pull from it."
            else
                say "something that is not tunnelmgr answers on $there. Do not pull from it."
            fi
            ;;
        silent) say "$there accepts connections but never answers, so it is not tunnelmgr." ;;
    esac
    fail 69 "Find the process with: ss -ltnp 'sport = :$port' (as root). Stop it, or give it another port."
}

# Gives up if another process has held the port for longer than is tolerated.
track_others() {
    case $verdict in
        foreign | silent) ;;
        *)
            others_since=
            others_seen=0
            return 0
            ;;
    esac
    [ -n "$others_since" ] || others_since=$elapsed
    held=$((elapsed - others_since))
    if [ "$verdict" = foreign ]; then
        others_seen=$((others_seen + 1))
        [ "$others_seen" -lt 3 ] || [ "$held" -lt "$foreign_patience" ] || give_up_on_others
    else
        [ "$held" -lt "$silent_patience" ] || give_up_on_others
    fi
}

give_up_on_time() {
    [ "$verdict" != foreign ] || give_up_on_others
    say "$registry is not ready after $limit s: $seen."
    say "On the controller's machine, \`tunnelmgr list\` shows this agent's phase, and \`tunnelmgr show AGENT\` why."
    [ "$soft" = yes ] || exit 75
    say "Continuing without it, because of --soft."
    exit 0
}

succeed() {
    take_field agent "$identity"
    agent=$field
    take_field group "$identity"
    group=$field
    take_field controller "$identity"
    say "$registry is ready (agent $agent, group $group, controller $field), after $((elapsed / 100)) s"
    exit 0
}

read_options() {
    soft=no
    for option in "$@"; do
        case $option in
            --soft) soft=yes ;;
            -h | --help)
                say "usage: tunnelmgr-wait [--soft]"
                say "Waits up to TUNNELMGR_WAIT seconds (120) for the registry on TUNNELMGR_REGISTRY (localhost:5000)."
                say "Exit status: 0 ready, 69 another process answers, 75 not ready in time" \
                    "(0 with --soft), 77 refused, 78 misconfigured."
                exit 0
                ;;
            *) fail 78 "unknown option $option; usage: tunnelmgr-wait [--soft]" ;;
        esac
    done
}

read_settings() {
    limit=${TUNNELMGR_WAIT:-120}
    case $limit in
        *[!0-9]* | 0* | ??????*) limit=0 ;;
    esac
    if [ "$limit" -lt 1 ] || [ "$limit" -gt 86400 ]; then
        fail 78 "TUNNELMGR_WAIT must be a whole number of seconds from 1 to 86400"
    fi
    registry=${TUNNELMGR_REGISTRY:-localhost:5000}
    port=${registry##*:}
    host=${registry%:*}
    case $port in
        '' | *[!0-9]* | 0* | ??????*) port=bad ;;
    esac
    case $host in
        '' | -* | *[!0-9A-Za-z.-]*)
            case $host in
                \[*[!0-9A-Fa-f:.]*\] | \[\]) port=bad ;;
                \[*\]) ;;
                *) port=bad ;;
            esac
            ;;
    esac
    [ "$port" != bad ] || fail 78 "TUNNELMGR_REGISTRY must be HOST:PORT, such as localhost:5000"
    hex_port=$(printf %04X "$port")
    first=$registry
    addresses=$registry
    if [ "$host" = localhost ]; then
        first=127.0.0.1:$port
        addresses="$first [::1]:$port"
    fi
}

# Sets $user, and $owner to its uid: to nothing if there is no such user, or if uids differ in this user namespace.
find_owner() {
    owner=
    user=${TUNNELMGR_USER:-tunnel}
    case $user in
        -* | *[!0-9A-Za-z._-]*) fail 78 "TUNNELMGR_USER must be the name of a user, or a uid" ;;
        *[!0-9]*) owner=$(id -u "$user" 2>/dev/null) || owner= ;;
        *) owner=$user ;;
    esac
    [ -n "$owner" ] || [ -z "${TUNNELMGR_USER:-}" ] || fail 78 "TUNNELMGR_USER: there is no user $user here"
    # A process in a user namespace of its own (user_namespaces(7)) sees other uids than the machine has.
    if ! { read -r inside outside length </proc/self/uid_map; } 2>/dev/null ||
        [ "$inside $outside $length" != '0 0 4294967295' ]; then
        owner=
    fi
}

find_client() {
    if command -v curl >/dev/null; then
        client=by_curl
    elif command -v wget >/dev/null; then
        client=by_busybox
        case $(wget --version 2>/dev/null) in
            *'GNU Wget'*) client=by_wget ;;
        esac
    else
        fail 78 "neither curl nor wget is installed here; install one of them"
    fi
}

main() {
    read_options "$@"
    set -f # [::1] is not a pattern
    read_settings
    find_owner
    find_client
    fractions=no
    quickest=100
    briefest=100
    if sleep 0.01 2>/dev/null; then
        fractions=yes
        quickest=20
        briefest=20
    fi

    start_clock
    others_since=
    others_seen=0
    next_report=0
    late=no
    verdict=closed
    seen="it did not answer in time" # if the first check begins too late, after a suspension of the machine
    holder=
    while :; do
        before=$verdict
        check_registry
        if [ "$late" = no ]; then describe; else verdict=$before; fi
        tick
        case $verdict in
            ready) succeed ;;
            refused) fail 77 "the controller refuses this agent${message:+: $message}. The rules of its group decide" \
                "that (see \`tunnelmgr show AGENT\` there)." ;;
        esac
        track_others
        if [ "$next_report" = 0 ]; then
            say "waiting up to $limit s for $registry"
            next_report=1000
        elif [ "$elapsed" -ge "$next_report" ]; then
            say "still waiting for $registry after $((elapsed / 100)) s: $seen"
            next_report=$(((elapsed / 1000 + 1) * 1000))
        fi
        pause=$quickest
        [ "$elapsed" -lt 500 ] || pause=100
        [ "$left" -ge $((pause + briefest)) ] || give_up_on_time
        (nap "$pause")
    done
}

# The whole script is read before anything runs, so that `sh < tunnelmgr-wait` works too.
main "$@" </dev/null >&2
