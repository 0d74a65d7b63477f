#!/bin/sh
# Makes the cluster at the first start, then becomes the server. See postgres.Dockerfile.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    : "${POSTGRES_USER:?} ${POSTGRES_DB:?} ${POSTGRES_PASSWORD:?}"
    password=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" >"$password"
    initdb --username="$POSTGRES_USER" --pwfile="$password" --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8
    rm "$password"
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    # No TCP until the database is there: the health check must not see a server that is half made.
    pg_ctl -w -o "-c listen_addresses= -c unix_socket_directories=/tmp" start
    PGPASSWORD=$POSTGRES_PASSWORD createdb -h /tmp -U "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl -w stop
fi
exec "$@" -c listen_addresses='*' -c unix_socket_directories=/tmp
