# Leader of the CLI's process group, which it becomes at the end. Its variables begin with af_, so that neither the
# profile nor the environment it sets up can change them.
af_run=$1 af_task_dir=$2 af_via=$3 af_checkout=$4
umask 077

# First be findable, then look whether the gate was closed meanwhile; kill.sh does the same the other way round.
printf '%s %s\n' "$$" "$(start_time $$)" >"$af_run/pid.tmp" && mv "$af_run/pid.tmp" "$af_run/pid" || exit 126
[ ! -d "$af_run/closed" ] || exit 125

load_profile "$af_run/profile"
cd "$af_task_dir" || exit 126

exec 3<"$af_run/spec"
set --
IFS= read -r af_count <&3
while [ "$af_count" -gt 0 ]; do
    IFS= read -r af_rest <&3
    af_word=
    while :; do
        case "$af_rest" in
            *'{prompt_file}'*) ;;
            *) break ;;
        esac
        [ "$af_via" = file ] || break
        af_word=$af_word${af_rest%%'{prompt_file}'*}$af_run/prompt
        af_rest=${af_rest#*'{prompt_file}'}
    done
    set -- "$@" "$af_word$af_rest"
    af_count=$((af_count - 1))
done
IFS= read -r af_count <&3
while [ "$af_count" -gt 0 ]; do
    IFS= read -r af_name <&3
    IFS= read -r af_value <&3
    export "$af_name=$af_value"
    af_count=$((af_count - 1))
done
exec 3<&-
# It may hold keys.
rm -f "$af_run/spec"

# A CLI in half a checkout would work on nothing: its attempt fails instead, with what git said.
if [ "$af_checkout" = yes ] && ! checkout; then
    echo "agent-fleet: the repository could not be checked out" >&2
    exit 124
fi

# A CLI whose stdin never ends waits for ever.
if [ "$af_via" = stdin ]; then
    exec "$@" <"$af_run/prompt"
fi
exec "$@" </dev/null
