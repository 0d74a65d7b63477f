#!/bin/sh
# Makes the key of the fleet and the key of the demo's SSH host, once: each lies in a volume that only its owner mounts.
set -eu
host=/etc/agent-fleet/host client=/etc/agent-fleet/ssh
if [ -s "$client/known_hosts" ]; then
    echo 'keys: already there'
    exit 0
fi
rm -f "$host"/ssh_host_ed25519_key* "$client"/id_ed25519*
ssh-keygen -q -t ed25519 -N '' -C demo-host -f "$host/ssh_host_ed25519_key"
ssh-keygen -q -t ed25519 -N '' -C agent-fleet -f "$client/id_ed25519"
cp "$client/id_ed25519.pub" "$host/authorized_keys"
chmod 755 "$host"
chmod 644 "$host/authorized_keys"
read -r type key _ <"$host/ssh_host_ed25519_key.pub"
chown -R agent-fleet: "$client"
chmod 700 "$client"
# Written last: it says that all is there.
echo "demo-host $type $key" >"$client/known_hosts.new"
chmod 644 "$client/known_hosts.new"
mv "$client/known_hosts.new" "$client/known_hosts"
echo 'keys: made'
