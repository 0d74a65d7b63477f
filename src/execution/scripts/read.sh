# Reads a run's output. Further arguments: `stdout` or `stderr`; the offset to read from, or `tail`; how many bytes at
# most. Answers the state, the file's size and the number of bytes that follow.
file=$run/$1
# The state before the size: after an exit nothing is written any more, so an exit seen here means that all is there.
look
size=0
[ ! -f "$file" ] || size=$(($(wc -c <"$file")))
offset=$2
if [ "$offset" = tail ]; then
    offset=$((size > $3 ? size - $3 : 0))
fi
len=$((size - offset))
[ "$len" -ge 0 ] || len=0
[ "$len" -le "$3" ] || len=$3
answer "$size $len $state"
[ "$len" -eq 0 ] || tail -c "+$((offset + 1))" "$file" | head -c "$len"
