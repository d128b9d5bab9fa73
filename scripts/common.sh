# What ./run, ./test and ./bench share. Sourced, never run. Results go to standard output, everything else to standard
# error.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${MC_BUILD:-$here/build}

# Debian 12's names. What a host that only runs the controller needs is in the first list.
packages_run=(
    ca-certificates cpio e2fsprogs fdisk gcc jq kmod libc6-dev libcurl4-openssl-dev libext2fs-dev libinih-dev
    libjansson-dev libmicrohttpd-dev libmnl-dev libnftables-dev libnftnl-dev libsodium-dev libsqlite3-dev
    libsystemd-dev libxxhash-dev libzstd-dev lz4 meson
    mmdebstrap nettle-dev ninja-build pkg-config qemu-system-x86 qemu-utils zstd
)
packages_test=(
    arping arptables binutils bridge-utils busybox-static chromium clang-format clang-tidy curl debootstrap ebtables ethtool
    iproute2 iptables iputils-ping libcap2-bin libcmocka-dev libpcap-dev nftables openssh-client openssl procps python3
    python3-jsonschema python3-pytest python3-pytest-xdist python3-websockets python3-yaml systemd tcpdump tshark util-linux
    xfsprogs
)
packages_peers=(haproxy nginx websockify) # of ./bench relay

say() { printf '%s\n' "$*" >&2; }
die() {
    say "$1"
    [[ ${2-} ]] && say "  $2"
    exit 1
}

started=$SECONDS
# step NAME COMMAND…: one line when it begins, its output in a log, a line every 10 s while it runs, and when it fails
# the last lines of the log and what to do ($step_hint).
step() {
    local name=$1 begun=$SECONDS pid status=0 shown=0
    shift
    mkdir -p "$build"
    local log="$build/step.log"
    printf '%4d s  %s\n' $((SECONDS - started)) "$name" >&2
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    while kill -0 $pid 2>/dev/null; do
        sleep 0.1
        if ((SECONDS - begun >= shown + 10)); then
            shown=$((SECONDS - begun))
            printf '%4d s    … %s: %s\n' $((SECONDS - started)) "$name" "$(tail -n 1 "$log" | tr -dc '[:print:]' | cut -c 1-100)" >&2
        fi
    done
    wait $pid || status=$?
    ((status == 0)) && return 0
    say "FAILED: $name (exit status $status). The end of what it said:"
    tail -n 15 "$log" | sed 's/^/    /' >&2
    die "  ${step_hint:-read the lines above, mend that, and run this again: it goes on from here}"
}

missing_packages() {
    dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "$@" 2>/dev/null | sed -n 's/^ii //p' | sort >"$build/have" || true
    printf '%s\n' "$@" | sort | comm -23 - "$build/have"
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q && apt-get install -q -y --no-install-recommends "$@"
}

# Installs what is not there of the named Debian packages, and Node where no npm is.
install_packages() {
    mkdir -p "$build"
    local wanted
    mapfile -t wanted < <(missing_packages "$@")
    type -P npm >/dev/null || wanted+=(nodejs npm)
    if ((${#wanted[@]} == 0)); then
        # The images are made of packages that apt must know, and a fresh machine may have emptied its lists.
        apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || ((EUID != 0)) || step 'apt-get update' apt-get update -q
        return 0
    fi
    ((EUID == 0)) || die "these Debian packages are missing: ${wanted[*]}" "install them, or run this as root"
    step_hint='does apt-get update work on this host? Then run this again' step "install ${#wanted[@]} Debian packages" apt_install "${wanted[@]}"
}

# npm_install DIR: what its package-lock.json says, once.
npm_install() {
    local stamp="$1/node_modules/.installed"
    cmp -s "$1/package-lock.json" "$stamp" && return 0
    step_hint='does npm ping work on this host? Then run this again' step "install npm packages of ${1#"$here"/}" npm_ci "$1"
}
npm_ci() {
    npm ci --prefix "$1" --ignore-scripts --no-audit --no-fund && cp "$1/package-lock.json" "$1/node_modules/.installed"
}

compile() { # DIR [meson options]; without options the tests are built when what they need is there
    local dir=$1
    shift
    if [[ ! -f $dir/build.ninja ]]; then
        (($#)) || set -- -Dtests="$(pkg-config --exists cmocka && echo true || echo false)"
        meson setup "$dir" "$here" "$@" || return 1
    elif (($#)); then
        meson configure "$dir" "$@" || return 1
    fi
    ninja -C "$dir"
}
