# Sourced by what needs a Debian 12 as it comes out of the box: scripts/try-bare-debian and the test of the images. Root only.
# shellcheck shell=bash

# Settings of this machine without which the package clients reach no registry: proxies, mirrors, certificates.
readonly CLIENT_VARIABLES='^(https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY|PIP_(INDEX_URL|EXTRA_INDEX_URL|CERT|DEFAULT_TIMEOUT)|CARGO_(HTTP|NET|REGISTRIES)_.*)='
readonly CLIENT_FILES=(/etc/pip.conf /etc/resolv.conf /etc/hosts)

need_root_and() { # PROGRAM…: installs the Debian packages of these names
  [ "$(id -u)" -eq 0 ] || fail "this needs root: it makes a root folder and mounts into it" "Run it as root."
  local program
  for program in "$@"; do
    command -v "$program" >/dev/null && continue
    say "installing the Debian package $program"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$program"; } >/dev/null ||
      fail "apt-get could not install $program" "Read its message above; then run this again."
  done
}

# make_bare_debian FOLDER: debootstraps once (400 MB, kept in the cache as an archive) and unpacks into FOLDER.
make_bare_debian() {
  local folder=$1 archive=$CACHE/bookworm-minbase.tar file
  if [ ! -f "$archive" ]; then
    say "debootstrapping a bare bookworm into $archive"
    # In memory, because dpkg waits for the disk after each of its files.
    local build
    build=$(mktemp -d) && mount -t tmpfs -o size=1g,mode=755 tmpfs "$build"
    debootstrap --variant=minbase --include=ca-certificates,git bookworm "$build" >"$archive.log" 2>&1 || {
      tail -n 5 "$archive.log" >&2
      umount -l "$build"
      fail "debootstrap failed" "Its log is $archive.log."
    }
    tar -C "$build" --numeric-owner --exclude='./var/cache/apt/archives/*.deb' -cf "$archive.partial" .
    umount -l "$build" && rmdir "$build"
    mv "$archive.partial" "$archive" && rm "$archive.log"
  fi
  tar -C "$folder" --numeric-owner -xf "$archive"
  for file in "${CLIENT_FILES[@]}"; do
    if [ -f "$file" ]; then cp -L "$file" "$folder$file"; fi
  done
  if [ -f "$HOME/.cargo/config.toml" ]; then install -D "$HOME/.cargo/config.toml" "$folder/root/.cargo/config.toml"; fi
  # How to fetch, and no hooks: the programs that those call are not in there.
  for file in /etc/apt/apt.conf.d/*; do
    if grep -q '^ *Acquire' "$file" && ! grep -q Invoke "$file"; then cp "$file" "$folder/etc/apt/apt.conf.d/"; fi
  done
  # Nothing in here has to survive a power loss, as Debian's own container images say too.
  echo force-unsafe-io >"$folder/etc/dpkg/dpkg.cfg.d/no-fsync"
  cp -r /usr/local/share/ca-certificates/. "$folder/usr/local/share/ca-certificates/"
  chroot "$folder" update-ca-certificates >/dev/null 2>&1
  # debootstrap knows the release only; a machine out of the box also has its updates, from the same mirror.
  local mirror
  mirror=$(awk '/^deb / {print $2; exit}' "$folder/etc/apt/sources.list")
  printf 'deb %s %s main\n' "$mirror" bookworm "$mirror" bookworm-updates "$mirror-security" bookworm-security \
    >"$folder/etc/apt/sources.list"
}

mount_into() { # FOLDER
  mount -t proc proc "$1/proc"
  mount --rbind --make-rslave /dev "$1/dev"
  mount -t sysfs -o ro sysfs "$1/sys"
}

# Ends every process that has FOLDER as its root, undoes the mounts, removes the folder.
remove_bare_debian() { # FOLDER
  local link
  for link in /proc/[0-9]*/root; do
    if [ "$(readlink "$link" 2>/dev/null)" = "$1" ]; then kill -9 "$(basename "$(dirname "$link")")" 2>/dev/null || true; fi
  done
  local tries
  for tries in 1 2 3 4 5; do
    grep -qF " $1/" /proc/mounts || break
    awk -v folder="$1/" 'index($2, folder) == 1 {print $2}' /proc/mounts | sort -r | xargs -r -n 1 umount -l 2>/dev/null || true
    sleep "0.$tries"
  done
  if grep -qF " $1/" /proc/mounts; then
    fail "mounts are left below $1" "Unmount them by hand before you remove the folder: it shows this machine's /dev."
  fi
  rm -rf --one-file-system "$1"
}
