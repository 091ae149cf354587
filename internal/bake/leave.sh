# Runs last in a machine that is built: takes out what enter put in, and what builds leave behind.
set -eu
here=/var/lib/vers-host
bundle=/etc/ssl/certs/ca-certificates.crt
rm -f /etc/apt/apt.conf.d/00vers-host /root/.npmrc /root/.config/go/env
rmdir /root/.config/go /root/.config 2>/dev/null || true
if [ -e "$here/bundle.before" ]; then
  rm -f /usr/local/share/ca-certificates/vers-host-ca-*.crt
  if cmp -s "$bundle" "$here/bundle.entered"; then
    cat "$here/bundle.before" >"$bundle"
  else
    update-ca-certificates --fresh >/dev/null # a package has made the bundle anew
  fi
fi
rm -rf /var/lib/vers-host /root/.npm /root/.cache /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log /tmp/* /var/tmp/*
apt-get clean
mkdir -p /var/log/apt

# A commit holds every page of memory that is not zero. The kernel zeroes a page when it hands it out, so that taking all the
# free ones once leaves little: the image becomes small, and nothing of the build stays in them.
sync
echo 3 >/proc/sys/vm/drop_caches
python3 - <<'PY'
import mmap
free = next(int(line.split()[1]) << 10 for line in open("/proc/meminfo") if line.startswith("MemFree"))
spare = 48 << 20
if free > spare:
    mmap.mmap(-1, free - spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()
PY
