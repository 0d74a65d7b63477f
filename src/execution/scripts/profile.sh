# Takes over what ~/.profile exports, by way of the file $1. The profile runs in a subshell: it may print, fail, `exit`
# or `exec` without harm.
load_profile() {
    af_dump=$1
    [ -r "$HOME/.profile" ] || return 0
    (
        trap 'export -p >|"$af_dump"' EXIT
        . "$HOME/.profile"
        export -p >|"$af_dump"
    ) </dev/null >/dev/null 2>&1
    [ ! -s "$af_dump" ] || . "$af_dump" >/dev/null 2>&1
    rm -f "$af_dump"
}
