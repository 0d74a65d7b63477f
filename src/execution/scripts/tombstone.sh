# Shrinks the run to a tombstone: the gate stays shut, the rest goes.
make_parents
if mkdir "$run" 2>/dev/null; then
    mkdir "$run/closed"
fi
[ -d "$run" ] || refuse "the run directory cannot be made in $fleet_dir"
look
case "$state" in
    running) refuse "the run is still at work" ;;
    starting*) refuse "the run may still start" ;;
esac
mkdir "$run/closed" 2>/dev/null
mkdir "$run/tombstone" 2>/dev/null
for file in "$run"/*; do
    [ ! -f "$file" ] || rm -f "$file"
done
rm -f "$mark"
answer buried
