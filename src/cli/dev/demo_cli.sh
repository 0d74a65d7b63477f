#!/bin/sh
# Stands in for a coding agent's CLI in demos: reads its prompt, prints a few lines, $1 (1) seconds apart, changes nothing.
goal='nothing'
while IFS= read -r line; do
    case $line in
        '' | '#'*) ;;
        *) [ "$goal" != nothing ] || goal=$line ;;
    esac
done
echo "demo: attempt ${AGENT_FLEET_ATTEMPT:-?} of ${AGENT_FLEET_TASK_KEY:-a task} in $(pwd)"
echo "demo: the goal is: $goal"
for step in reading thinking writing; do
    echo "demo: $step ..."
    sleep "${1:-1}"
done
echo "demo: done; a real agent would have opened a pull request from ${AGENT_FLEET_BRANCH:-its branch}"
