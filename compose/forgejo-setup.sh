#!/bin/sh
# Makes a Forgejo ready for the fleet: administrator, repository, labels, webhook, a first issue. What is there stays; the
# webhook gets the secret of today. Runs in Forgejo's own image, beside the server and on its data.
#
# No secret is in a command line: curl reads its token and each body from its standard input.
set -eu
user=fleet repo=demo
api=$FORGEJO_URL/api/v1
: "${FORGEJO_ADMIN_PASSWORD:?} ${WEBHOOK_SECRET:?}"

forgejo admin user list | grep -qw "$user" ||
    forgejo admin user create --admin --username "$user" --email "$user@localhost.localdomain" \
        --random-password --must-change-password=false >/dev/null
token=$(forgejo admin user generate-access-token --username "$user" --scopes all --raw --token-name "setup-$(date +%s)" | tail -n 1)

# ask METHOD PATH [BODY]: fails on any status that is no success.
ask() {
    {
        printf 'header = "Authorization: token %s"\nheader = "Content-Type: application/json"\n' "$token"
        # In curl's configuration a quoted value takes backslashes before quotes and backslashes.
        [ -z "${3:-}" ] || printf 'data = "%s"\n' "$(printf '%s' "$3" | tr -d '\n' | sed 's/[\\"]/\\&/g')"
    } | curl -sS -f --config - -X "$1" "$api$2"
}

ask PATCH "/admin/users/$user" \
    "{\"source_id\":0,\"login_name\":\"$user\",\"password\":\"$FORGEJO_ADMIN_PASSWORD\",\"must_change_password\":false}" >/dev/null
ask GET "/repos/$user/$repo" >/dev/null 2>&1 ||
    ask POST /user/repos "{\"name\":\"$repo\",\"auto_init\":true,\"default_branch\":\"main\"}" >/dev/null

labels=$(ask GET "/repos/$user/$repo/labels")
for label in agent:code agent:demo agent:docs; do
    case $labels in
        *"\"$label\""*) ;;
        *) ask POST "/repos/$user/$repo/labels" "{\"name\":\"$label\",\"color\":\"#1d76db\"}" >/dev/null ;;
    esac
done

# The ids of the hooks that are there: replaced, so that one with an old secret does not stay.
for id in $(ask GET "/repos/$user/$repo/hooks" | sed 's/{/\n{/g' | sed -n 's/^{"id":\([0-9]*\),"type".*/\1/p'); do
    ask DELETE "/repos/$user/$repo/hooks/$id" >/dev/null
done
ask POST "/repos/$user/$repo/hooks" "{\"type\":\"forgejo\",\"active\":true,
    \"events\":[\"issues\",\"pull_request\",\"push\"],
    \"config\":{\"url\":\"$WEBHOOK_URL\",\"content_type\":\"json\",\"secret\":\"$WEBHOOK_SECRET\"}}" >/dev/null

case $(ask GET "/repos/$user/$repo/issues?state=all&limit=1") in
    '[]')
        label=$(ask GET "/repos/$user/$repo/labels" | sed 's/{/\n{/g' | sed -n 's/^{"id":\([0-9]*\),"name":"agent:code".*/\1/p')
        ask POST "/repos/$user/$repo/issues" \
            "{\"title\":\"Say hello\",\"body\":\"Whoever is free first says hello.\",\"labels\":[$label]}" >/dev/null
        ;;
esac
echo
echo "Forgejo is up: $PUBLIC_URL/$user/$repo"
echo "Account $user, password FORGEJO_ADMIN_PASSWORD in .env. An issue labelled agent:code becomes a task."
echo
