# Facts about processes: from /proc where there is one (Linux), else from ps (macOS).

# The start time of process $1; nothing when it does not run (a zombie does not). Comparable on one host only.
start_time() {
    if [ -r /proc/self/stat ]; then
        { IFS= read -r af_stat <"/proc/$1/stat"; } 2>/dev/null || return 0
        # The name may hold spaces and parentheses; behind the last one stand the fields from the third on (proc(5)).
        set -- ${af_stat##*) }
    else
        set -- $(LC_ALL=C TZ=UTC0 ps -o stat= -o lstart= -p "$1" 2>/dev/null)
    fi
    case "${1:-Z}" in
        Z* | X*) return 0 ;;
    esac
    if [ -r /proc/self/stat ]; then
        echo "${20}"
    else
        shift
        echo "$*"
    fi
}

# True when process $1 runs and is the one that started at $2: a reused pid is somebody else.
is_alive() {
    [ -n "$2" ] && [ "$(start_time "$1")" = "$2" ]
}

# True when process group $1 has a member that is no zombie.
group_alive() {
    kill -s 0 -- "-$1" 2>/dev/null || return 1
    if [ ! -r /proc/self/stat ]; then
        LC_ALL=C ps -A -o pgid= -o stat= | grep -v ' Z' | grep -q "^ *$1 "
        return
    fi
    for af_file in /proc/[0-9]*/stat; do
        { IFS= read -r af_stat <"$af_file"; } 2>/dev/null || continue
        af_stat=${af_stat##*) }
        case "$af_stat" in
            Z* | X*) continue ;;
        esac
        af_stat=${af_stat#* }
        af_stat=${af_stat#* }
        [ "${af_stat%% *}" != "$1" ] || return 0
    done
    return 1
}

# A fifth of a second; a whole one where sleep takes no fractions.
nap() {
    sleep 0.2 2>/dev/null || sleep 1
}

# Waits until process group $1 is gone, at most about $2 seconds.
await_group_end() {
    af_left=$(($2 * 5))
    while group_alive "$1"; do
        [ "$af_left" -gt 0 ] || return 1
        af_left=$((af_left - 1))
        nap
    done
}

# Ends process group $1: TERM, $2 seconds of grace, KILL. False when members are left even so.
end_group() {
    group_alive "$1" || return 0
    kill -s TERM -- "-$1" 2>/dev/null
    await_group_end "$1" "$2" && return 0
    kill -s KILL -- "-$1" 2>/dev/null
    await_group_end "$1" 5
}

# Names this boot of the machine, as well as the machine lets us.
boot_id() {
    cat /proc/sys/kernel/random/boot_id 2>/dev/null ||
        sysctl -n kern.bootsessionuuid 2>/dev/null ||
        sysctl -n kern.boottime 2>/dev/null ||
        echo unknown
}

# True when `detach` can work here.
can_detach() {
    command -v setsid >/dev/null 2>&1 || command -v perl >/dev/null 2>&1
}

# Becomes the command, as leader of a session and process group of its own. For `detach … &`: $! is then the group.
detach() {
    if command -v setsid >/dev/null 2>&1; then
        exec setsid "$@"
    fi
    exec perl -MPOSIX -e 'POSIX::setsid(); exec { $ARGV[0] } @ARGV or exit 127' -- "$@"
}
