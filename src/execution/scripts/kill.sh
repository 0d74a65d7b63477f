# Ends a run, or sees to it that it never starts. Further argument: the grace between TERM and KILL in seconds. Nothing
# is signalled unless pid and start time both match.
grace=$1

make_parents
if mkdir "$run" 2>/dev/null; then
    mkdir "$run/closed"
    answer never_started
    exit 0
fi
[ -d "$run" ] || refuse "the run directory cannot be made in $fleet_dir"
# Before looking for a pid: leader.sh writes its pid first and looks for this mark after.
mkdir "$run/closed" 2>/dev/null

look_once
case "$state" in
    closed)
        if [ -d "$run/tombstone" ]; then answer gone; else answer never_started; fi
        exit 0
        ;;
    running) ;;
    *)
        # Exited, rebooted or vanished. A group that outlived both leader and runner cannot be told from a stranger's.
        if [ "$state" = vanished ] && [ -z "$(start_time "$pid")" ] && group_alive "$pid"; then
            answer alive
        else
            answer gone
        fi
        exit 0
        ;;
esac

if is_alive "$pid" "$start"; then
    end_group "$pid" "$grace"
fi
# The runner ends what is left and writes `exit`.
left=$(((grace + 10) * 5))
while runner_alive && [ "$left" -gt 0 ]; do
    left=$((left - 1))
    nap
done
if is_alive "$pid" "$start" || runner_alive; then
    answer alive
elif [ -z "$(start_time "$pid")" ] && group_alive "$pid"; then
    answer alive
else
    answer gone
fi
