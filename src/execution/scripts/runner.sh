# The detached runner of one run: starts the CLI, ends it at the deadline, writes `exit` last.
run=$1 task_dir=$2 timeout=$3 grace=$4 via=$5 checkout=$6
umask 077

printf '%s %s\n' "$$" "$(start_time $$)" >"$run/runner"
detach sh "$run/leader.sh" "$run" "$task_dir" "$via" "$checkout" </dev/null >"$run/stdout" 2>"$run/stderr" &
leader=$!

# The watchdog looks every two seconds rather than sleeping once, so that it is gone soon after the CLI, with its sleep,
# and outlives a runner that was killed.
(
    while kill -s 0 "$leader" 2>/dev/null; do
        if [ "$timeout" -le 0 ]; then
            : >"$run/timeout"
            end_group "$leader" "$grace"
            break
        fi
        nap_secs=$((timeout < 2 ? timeout : 2))
        timeout=$((timeout - nap_secs))
        sleep "$nap_secs"
    done
) </dev/null >/dev/null 2>&1 &

wait "$leader"
code=$?
# What the CLI left behind in its group would write on, and keep the folder busy.
end_group "$leader" "$grace"

reason=exited
[ ! -d "$run/closed" ] || reason=killed
[ ! -f "$run/timeout" ] || reason=timeout
printf '%s %s\n' "$code" "$reason" >"$run/exit.tmp" && mv "$run/exit.tmp" "$run/exit"
