#!/bin/sh
# Makes deploy/secrets/: a password for every user of nats.conf and the keys of the S3 store.
# Passwords that are there stay: delete one and run this again to change it.
set -eu
users="agent handlers cache archive executor observer orchestrator operator"
cd "$(dirname "$0")"

# The folder keeps other users of this machine out; the containers' users must read the files.
mkdir -p secrets
chmod 700 secrets
cd secrets
umask 022

random() { # 32 hexadecimal digits
    od -An -N16 -tx1 /dev/urandom | tr -d ' \n'
}

for name in $users s3_access_key s3_secret_key; do
    [ -s "$name" ] || random >"$name"
done

for user in $users; do
    printf '%s_password: "%s"\n' "$user" "$(cat "$user")"
done >passwords.conf

cat >s3.json <<END
{"identities": [{
  "name": "archive",
  "credentials": [{"accessKey": "$(cat s3_access_key)", "secretKey": "$(cat s3_secret_key)"}],
  "actions": ["Read:fleet-archive", "Write:fleet-archive", "List:fleet-archive"]
}]}
END

cat >aws_credentials <<END
[default]
aws_access_key_id = $(cat s3_access_key)
aws_secret_access_key = $(cat s3_secret_key)
END
