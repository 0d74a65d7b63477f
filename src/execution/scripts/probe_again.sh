# Looks whether the process that probe.sh detached outlived its connection, and ends it. Further arguments: its pid and
# start time.
pid=$1
shift
# logind kills what a session leaves behind a moment after its end.
sleep 1
if is_alive "$pid" "$*"; then
    kill "$pid"
    answer detached yes
else
    answer detached no
fi
