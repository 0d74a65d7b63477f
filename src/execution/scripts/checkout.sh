# Brings the task's repository into its folder, and checks its branch out: as an earlier attempt left it, else as the
# forge has it, else new from the default branch. May be repeated, also after it was cut off halfway. Address and branch
# come from the environment; nothing of them is ever read by a shell.
checkout() {
    af_url=$AGENT_FLEET_CLONE_URL af_branch=$AGENT_FLEET_BRANCH
    # A task that names no repository has an empty folder.
    [ -n "$af_url" ] || return 0
    case "$af_url" in
        -*)
            echo "the clone address begins with a dash" >&2
            return 1
            ;;
    esac
    export GIT_TERMINAL_PROMPT=0
    git init -q . &&
        git config remote.origin.url "$af_url" &&
        git config remote.origin.fetch '+refs/heads/*:refs/remotes/origin/*' &&
        git fetch -q origin || return
    if git rev-parse -q --verify "refs/heads/$af_branch" >/dev/null; then
        git checkout -q "$af_branch" --
    elif git rev-parse -q --verify "refs/remotes/origin/$af_branch" >/dev/null; then
        git checkout -q -b "$af_branch" "refs/remotes/origin/$af_branch"
    else
        git remote set-head origin -a && git checkout -q --no-track -b "$af_branch" refs/remotes/origin/HEAD
    fi
} >&2
