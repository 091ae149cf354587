# Runs in a machine that is built: puts the settings of the host beside this file to their places.
set -eu
here=$(dirname "$0")
cp "$here/apt.conf" /etc/apt/apt.conf.d/00vers-host
cp "$here/npmrc" /root/.npmrc
mkdir -p /root/.config/go
cp "$here/goenv" /root/.config/go/env
for certificate in "$here"/ca-*.crt; do
  [ -e "$certificate" ] || continue
  cp "$certificate" "/usr/local/share/ca-certificates/vers-host-$(basename "$certificate")"
done
if [ -e /usr/local/share/ca-certificates/vers-host-ca-0.crt ]; then update-ca-certificates; fi
