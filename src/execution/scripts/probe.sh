# Looks whether runs can work here. Further arguments: the programs to look for. Answers one line for each fact, then
# starts a detached process and names it, for probe_again.sh to find over another connection.
answer boot "$(boot_id)"
answer system "$(uname -sr)"

if ! made=$(mkdir -p "$fleet_dir" "$work/tasks" 2>&1); then
    answer work_dir "$made"
elif ! made=$( (: >"$fleet_dir/probe.$$") 2>&1); then
    answer work_dir "$made"
else
    rm -f "$fleet_dir/probe.$$"
    answer work_dir ok
    load_profile "$fleet_dir/probe.$$"
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
