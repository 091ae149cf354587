# Runs in a machine that is built: puts the settings of the host beside this file to their places.
set -eu
here=$(dirname "$0")
bundle=/etc/ssl/certs/ca-certificates.crt
cp "$here/apt.conf" /etc/apt/apt.conf.d/00vers-host
cp "$here/npmrc" /root/.npmrc
mkdir -p /root/.config/go
cp "$here/goenv" /root/.config/go/env
for certificate in "$here"/ca-*.crt; do
  [ -e "$certificate" ] || continue
  # update-ca-certificates is slow where nothing accelerates the machine. It finds them here should a package run it.
  cp "$certificate" "/usr/local/share/ca-certificates/vers-host-$(basename "$certificate")"
  [ -e "$here/bundle.before" ] || cp -p "$bundle" "$here/bundle.before"
  cat "$certificate" >>"$bundle"
done
cp -p "$bundle" "$here/bundle.entered"
apt-get -q update # once for all that are built of the same base
