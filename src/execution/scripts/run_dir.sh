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
fleet_dir=$work/.agent-fleet/$2
task_dir=$work/tasks/$3
run=$fleet_dir/$3.$4
shift 4

# Makes the folders above the gate.
make_parents() {
    made=$(mkdir -p "$fleet_dir" "$work/tasks" 2>&1) || refuse "$made"
}
