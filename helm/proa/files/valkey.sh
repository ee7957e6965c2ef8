#!/bin/sh
# Starts the Valkey or Redis of a shard: users from the passwords in $PASSWORDS, nobody else let in.
# Set by the chart: RUN, DATA, PASSWORDS, PORT, MAXMEMORY, APPENDONLY, FAULTS, TLS (a folder, or empty).
set -eu
umask 077

digest() { tr -d '\r\n' < "$PASSWORDS/$1" | sha256sum | cut -d ' ' -f 1; }
for user in agent reader; do
  test -s "$PASSWORDS/$user" || { echo "$PASSWORDS/$user is missing or empty" >&2; exit 1; }
done

# What docs/store.md says that an agent and a reader send.
agent='+info +multi +exec +watch +unwatch +get +set +hset +hmget +hgetall +hkeys +lrange +rpush +ltrim +del +unlink +config|set'
reader='+info +multi +exec +get +hmget +lrange'
# An experiment with an old disk begins a new life of the server.
test "${FAULTS:-no}" = no || agent="$agent +shutdown"
{
  echo 'user default off'
  echo "user agent on #$(digest agent) ~* -@all $agent"
  echo "user reader on #$(digest reader) %R~* -@all $reader"
} > "$RUN/users.acl"

server=$(command -v valkey-server || command -v redis-server)
set -- --aclfile "$RUN/users.acl" --dir "$DATA" --maxmemory "$MAXMEMORY" \
  --maxmemory-policy noeviction --save '' --appendonly "$APPENDONLY" --protected-mode no
if test -n "$TLS"; then
  # Agents tell the server when these files were renewed.
  set -- "$@" --port 0 --tls-port "$PORT" --tls-auth-clients yes --tls-cert-file "$TLS/tls.crt" \
    --tls-key-file "$TLS/tls.key" --tls-ca-cert-file "$TLS/ca.crt"
else
  set -- "$@" --port "$PORT"
fi
exec "$server" "$@"
