# Where a run lives, from the first four arguments: work_dir, fleet_id, task_id, run_lease. Every answer is one line
# behind a mark, so that what a login shell prints before it does no harm.
umask 077

answer() {
    printf '@agent-fleet@ %s\n' "$(printf '%s' "$*" | tr '\n' ' ')"
}

refuse() {
    answer refused "$*"
    exit 0
}

case "$1" in
    '~') work=$HOME ;;
    '~/'*) work=$HOME/${1#'~/'} ;;
    /*) work=$1 ;;
    *) refuse "work_dir must be absolute or start with ~/" ;;
esac
[ "$work" = / ] || work=${work%/}
fleet_dir=$work/.agent-fleet/$2
task_dir=$work/tasks/$3
run=$fleet_dir/$3.$4
# A mark for each run that is no tombstone yet, so that what is left over is found without looking through all of them.
marks=$fleet_dir/live
mark=$marks/$3.$4
shift 4

# Makes the folders above the gate.
make_parents() {
    made=$(mkdir -p "$marks" "$work/tasks" 2>&1) || refuse "$made"
}

# Says which of our folders is a symbolic link, if one is: it would lead elsewhere than the operator meant.
find_link() {
    for folder in "$work" "$work/.agent-fleet" "$fleet_dir" "$work/tasks" "$task_dir"; do
        [ ! -L "$folder" ] || echo "$folder is a symbolic link; put a real folder there, or name another work_dir"
    done
}
