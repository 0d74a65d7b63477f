# Looks whether runs can work here. Further arguments: after how many days tombstones go; the programs to look for.
# Answers one line for each fact, then starts a detached process and names it, for probe_again.sh to find over another
# connection.
days=$1
shift
answer boot "$(boot_id)"
answer system "$(uname -sr)"

linked=$(find_link)
if [ -n "$linked" ]; then
    answer work_dir "$linked"
elif ! made=$(mkdir -p "$marks" "$work/tasks" 2>&1); then
    answer work_dir "$made"
elif ! made=$( (: >"$fleet_dir/probe.$$") 2>&1); then
    answer work_dir "$made"
elif ! made=$( (printf '%65536s' '' >"$fleet_dir/probe.$$") 2>&1); then
    rm -f "$fleet_dir/probe.$$"
    answer work_dir "64 KiB do not fit in $work: $made"
else
    rm -f "$fleet_dir/probe.$$"
    answer work_dir ok
    load_profile "$fleet_dir/probe.$$"
    for mark in "$marks"/*; do
        [ ! -f "$mark" ] || answer run "${mark##*/}"
    done | head -n 500
    # Once an hour.
    if [ -z "$(find "$fleet_dir/swept" -mmin -60 2>/dev/null)" ]; then
        : >"$fleet_dir/swept"
        find "$fleet_dir" -type d -name tombstone -mtime "+$days" -prune 2>/dev/null |
            while IFS= read -r mark; do rm -rf "${mark%/tombstone}"; done
    fi
fi
for program in "$@"; do
    answer program "$(command -v "$program" 2>/dev/null)"
done

if can_detach; then
    detach sleep 30 </dev/null >/dev/null 2>&1 &
    answer detached "$! $(start_time $!)"
else
    answer detached
fi
