# What became of the run at $run, as words in $state. The order matters: `exit` first, because it is written last.
look_once() {
    state=not_started
    [ -d "$run" ] || return 0
    code=
    { read -r code reason <"$run/exit"; } 2>/dev/null
    if [ -n "$code" ]; then
        state="exited $code $reason"
        return 0
    fi
    if [ -d "$run/tombstone" ]; then
        state=closed
        return 0
    fi
    if [ -s "$run/boot_id" ] && [ "$(cat "$run/boot_id")" != "$(boot_id)" ]; then
        state=rebooted
        return 0
    fi
    pid=
    { read -r pid start <"$run/pid"; } 2>/dev/null
    if [ -z "$pid" ]; then
        state=closed
        [ ! -d "$run/closed" ] || return 0
        changed=$(stat -c %Y "$run" 2>/dev/null || stat -f %m "$run")
        state="starting $(($(date +%s) - ${changed:-0}))"
        return 0
    fi
    state=running
    is_alive "$pid" "$start" && return 0
    # The CLI has ended; its runner may still be ending what it left behind.
    runner_alive && return 0
    state=vanished
}

runner_alive() {
    runner=
    { read -r runner runner_start <"$run/runner"; } 2>/dev/null
    [ -n "$runner" ] && is_alive "$runner" "$runner_start"
}

# Looks twice before it calls a run vanished: the runner's last act is to write `exit`.
look() {
    look_once
    if [ "$state" = vanished ]; then
        nap
        look_once
    fi
}
