# Starts a run, at most once. Further arguments: timeout and kill grace in seconds, how the prompt is given, bytes of the
# spec and of the prompt, the texts of runner.sh and leader.sh, whether to check the repository out (`yes`). stdin: the spec (environment and argument vector, a line
# each; leader.sh reads it), then the prompt.
timeout=$1 grace=$2 via=$3 spec_len=$4 prompt_len=$5

can_detach || refuse "the host has neither setsid nor perl, so a run cannot be detached"
linked=$(find_link)
[ -z "$linked" ] || refuse "$linked"
make_parents

# Before the gate, so that no run is without it.
made=$( (: >"$mark") 2>&1) || refuse "$made"
# The gate. Whoever makes this directory, and nobody else, may start the run.
if ! mkdir "$run" 2>/dev/null; then
    [ -d "$run" ] || refuse "the run directory cannot be made in $fleet_dir"
    answer exists
    exit 0
fi

# A cut connection must never start a CLI on half a prompt.
said=$(cat 2>&1 >"$run/input") || {
    mkdir "$run/closed"
    rm -f "$run/input"
    refuse "the run cannot be prepared: $said"
}
if [ "$(($(wc -c <"$run/input")))" -ne "$((spec_len + prompt_len))" ]; then
    mkdir "$run/closed"
    rm -f "$run/input"
    answer cut
    exit 0
fi
{
    head -c "$spec_len" <"$run/input" >"$run/spec" &&
        tail -c "+$((spec_len + 1))" <"$run/input" >"$run/prompt" &&
        rm "$run/input" &&
        boot_id >"$run/boot_id" &&
        printf '%s\n' "$6" >"$run/runner.sh" &&
        printf '%s\n' "$7" >"$run/leader.sh" &&
        mkdir -p "$task_dir"
} 2>"$run/stderr" || {
    mkdir "$run/closed"
    rm -f "$run/spec" "$run/prompt" "$run/input"
    refuse "the run cannot be prepared: $(cat "$run/stderr")"
}

detach sh "$run/runner.sh" "$run" "$task_dir" "$timeout" "$grace" "$via" "$8" </dev/null >/dev/null 2>&1 &
answer started
