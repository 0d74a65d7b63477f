#!/bin/sh
# Says where the stack is, once a host and an agent are online.
set -u
left=120
until agent-fleet hosts list 2>/dev/null | grep -qw online && agent-fleet agents list 2>/dev/null | grep -qw online; do
    left=$((left - 1))
    if [ "$left" -eq 0 ]; then
        echo 'welcome: the host or the agent is not online after two minutes:' >&2
        agent-fleet hosts list >&2
        agent-fleet agents list >&2
        exit 1
    fi
    sleep 1
done
cat <<END

agent-fleet is up: $PUBLIC_URL
The token of an administrator is AGENT_FLEET_ADMIN_TOKEN in .env.

  docker compose run --rm cli task submit --title 'Say hello' --label agent:code --wait
  docker compose run --rm cli task list

END
