# shellcheck shell=bash
# What the builders of the golden image and of the tests' tiny guest share: steps with a log, a folder that appears
# whole or not at all, the manifest, the check. To be sourced; the caller has `set -euo pipefail`.
#
#   BASE/<build-id>/{rootfs.ext4,vmlinuz,vmlinux,initrd.img,manifest.json,build.log}
#   BASE/current                            -> <build-id>, swapped by rename(2)
#   BASE/golden-rootfs.ext4                 -> current/rootfs.ext4
#   BASE/golden-rootfs.ext4.manifest.json   -> current/manifest.json
#
# Needs: coreutils util-linux e2fsprogs jq, and lz4 (or xz-utils, zstd, …) for the kernel

PATH=$PATH:/usr/sbin:/sbin
readonly image_keep_builds=${MC_IMAGE_KEEP:-2} # the newest is one of them

die() {
    echo "$image_program: $*" >&2
    exit 1
}

need_tools() { # TOOL=PACKAGE...
    local pair missing=()
    for pair; do
        type -P "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    ((${#missing[@]} == 0)) || die "missing tools; install them: apt-get install -y --no-install-recommends ${missing[*]}"
}

# ---------------------------------------------------------------- one build

# Makes the folder of a new build, `work`, and takes the lock: two builds in one BASE would remove each other's folder.
image_begin() { # BASE BUILD-ID
    base=$1
    build_id=$2
    mkdir -p "$base"
    base=$(realpath "$base")
    exec {image_lock}>"$base/.lock"
    flock --nonblock "$image_lock" ||
        die "another build is running in $base (or the rest of a killed one is still at work): wait for it"
    rm -rf --one-file-system "$base"/.tmp-* # of a build that was killed
    work=$base/.tmp-$build_id
    log=$work/build.log
    mkdir "$work"
    chmod 0755 "$work"
    export TMPDIR=$work # of a step's programs: what one leaves that is killed goes with the rest
    : >"$log"
    step_pid='' step_name=''
    trap image_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    set -m
    image_guard >/dev/null 2>&1 </dev/null &
    guard_pid=$!
    set +m
}

# Beside the build, for when it is killed in a way that no trap sees: ends its step, and takes away what that has made. It
# holds the lock meanwhile.
image_guard() {
    trap - EXIT
    trap '' INT TERM HUP
    local step quiet
    exec {quiet}<> <(:) # from which nothing ever comes: a sleep(1) would outlive us, with the lock
    while kill -0 $$; do read -rt 1 -u "$quiet" || true; done
    step=$(cat "$work/.step") || true
    if [[ $step ]]; then
        kill -KILL -- "-$step" || true
        while kill -0 -- "-$step"; do sleep 0.1; done
    fi
    rm -rf --one-file-system "$work"
}

image_end() {
    local status=$?
    trap '' INT TERM HUP
    set +e # it goes to its end: what a killed step returns is no reason to leave the rest
    if [[ $step_pid ]]; then
        # KILL, because mmdebstrap puts off everything else; all that the step has made is in $work.
        kill -KILL -- "-$step_pid" 2>/dev/null
        wait "$step_pid" 2>/dev/null
        while kill -0 -- "-$step_pid" 2>/dev/null; do sleep 0.1; done
    fi
    if ((status != 0)) && [[ -e $log ]]; then
        cp "$log" "$base/failed-build.log"
        echo "$image_program: the image was not built; what was there before is untouched" >&2
    fi
    kill -KILL "$guard_pid" 2>/dev/null
    wait "$guard_pid" 2>/dev/null
    rm -rf --one-file-system "$work"
    exit "$status"
}

# Runs a command or function in the background, its output in the log: a signal then ends the build at once. It gets a
# process group of its own (set -m), so that all of it can be ended.
step() { # NAME COMMAND [ARGUMENT...]
    step_name=$1
    shift
    printf '[%4d s] %s\n' "$SECONDS" "$step_name" >&2
    printf '\n==== %d s: %s\n' "$SECONDS" "$step_name" >>"$log"
    # A signal in the moment in which the step runs and nobody has noted its pid would leave it running: it waits.
    local signal=''
    trap 'signal=130' INT
    trap 'signal=143' TERM HUP
    set -m
    (
        trap - EXIT INT TERM HUP
        set -e
        echo "$BASHPID" >"$work/.step"
        "$@"
    ) >>"$log" 2>&1 </dev/null &
    step_pid=$!
    set +m
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    [[ ! $signal ]] || exit "$signal"
    local status=0 last='' line
    while kill -0 "$step_pid" 2>/dev/null; do
        # A person who waits for minutes sees what it does now; a log file does not get the noise.
        if [[ -t 2 ]]; then
            line=$(tail -n 1 "$log" | tr -cd '[:print:]' | cut -c 1-70)
            [[ $line == "$last" ]] || printf '\r\033[K         %s' "$line" >&2
            last=$line
        fi
        sleep 0.2
    done
    [[ ! -t 2 ]] || printf '\r\033[K' >&2
    wait "$step_pid" || status=$?
    if ((status == 0)); then
        step_pid=''
        rm -f "$work/.step"
        return
    fi
    # The rest of the step may be at work yet, where one process of it was killed: image_end ends it.
    {
        echo "$image_program: step failed after $SECONDS s: $step_name (status $status)"
        echo "---- the last lines of its log ($base/failed-build.log):"
        tail -n 20 "$log"
        echo "----"
        # Then the log may be cut off as well, before it says so.
        (($(mib_free) >= 16)) || echo "The disk is full: $base"
        echo "What to do: $step_hint"
    } >&2
    exit 1
}

mib_free() {
    df --output=avail -BM "$base" | tail -n 1 | tr -dc 0-9
}

need_disk() { # MIB
    local have
    have=$(mib_free)
    ((have >= $1)) || die "not enough disk in $base: need $1 MiB, have $have MiB"
    printf '[%4d s] disk: need %d MiB, have %d MiB\n' "$SECONDS" "$1" "$have" >&2
}

# A sparse ext4 from a folder, without a mount. Fixed UUID and hash seed: the same content gives the same file system.
# E2FSPROGS_FAKE_TIME because mke2fs 1.47.0 does not know SOURCE_DATE_EPOCH.
make_rootfs() { # FOLDER FILE FREE_MIB LABEL
    local used_kib files
    # Counted by length, not by what it takes on this host's disk: that depends on the host.
    # A file with several names counts once.
    read -r used_kib files < <(find "$1" -printf '%y %s %i\n' |
        awk '{ n++ } !seen[$3]++ { k += $1 == "f" ? int(($2 + 4095) / 4096) * 4 : $1 == "d" ? 4 : 0 } END { print k, n }')
    # Content, 5 % for metadata, the free space asked for; an inode for each 16 KiB or at least twice the files.
    local size_kib=$(((used_kib * 105 / 100 + $3 * 1024 + 1023) / 1024 * 1024))
    local inodes=$((size_kib / 16 > files * 2 ? size_kib / 16 : files * 2))
    rm -f "$2"
    E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -t ext4 -d "$1" -L "$4" -m 0 -N "$inodes" \
        -U "$rootfs_uuid" -E "hash_seed=$rootfs_uuid,lazy_itable_init=1,root_owner=0:0" \
        "$2" "${size_kib}k"
    # mke2fs takes the change times of the folder's files: when it was made, which nobody can set.
    [[ -z ${settle-} ]] || "$settle" "$2" "$SOURCE_DATE_EPOCH"
}

# Little-endian number of a file.
number_at() { # FILE OFFSET BYTES
    od -A n -t "u$3" -j "$2" -N "$3" --endian=little "$1" | tr -d ' '
}

# The kernel as Firecracker wants it: the ELF that is packed into a bzImage.
# Source: Documentation/arch/x86/boot.rst: setup_sects at 0x1f1, "HdrS" at 0x202, version at 0x206, payload_offset (from
# the end of the setup code) at 0x248 and payload_length at 0x24c, since version 2.08. What follows the compressed data
# in the payload is its length, so the tools' complaint about a tail is expected and the result is what counts.
extract_vmlinux() { # BZIMAGE OUT
    local setup offset length magic tool
    [[ $(dd if="$1" bs=1 skip=$((0x202)) count=4 status=none) == HdrS ]] || die "$1 is not a bzImage"
    (($(number_at "$1" $((0x206)) 2) >= 0x208)) || die "$1 is of a boot protocol that does not say where its kernel is"
    setup=$(number_at "$1" $((0x1f1)) 1)
    offset=$((((setup == 0 ? 4 : setup) + 1) * 512 + $(number_at "$1" $((0x248)) 4)))
    length=$(number_at "$1" $((0x24c)) 4)
    magic=$(od -A n -t x1 -j "$offset" -N 4 "$1" | tr -d ' ')
    case $magic in
    02214c18) tool=lz4 ;; # Debian's cloud kernel
    fd377a58) tool=xz ;;
    28b52ffd) tool=zstd ;;
    1f8b08*) tool=gzip ;;
    425a68*) tool=bzip2 ;;
    *) die "$1: the kernel in it is packed in a way that is not known here (it begins with $magic)" ;;
    esac
    need_tools "$tool=${tool/#xz/xz-utils}"
    tail -c "+$((offset + 1))" "$1" | head -c "$length" | "$tool" -dc >"$2" 2>/dev/null || true
    # ELF, 64 bits, little-endian, an executable or a shared object of x86-64; and whole.
    [[ $(od -A n -t x1 -N 6 "$2" | tr -d ' ') == 7f454c460201 && $(number_at "$2" 18 2) == 62 ]] ||
        die "what is packed into $1 is not an x86-64 ELF kernel"
    (($(number_at "$2" 40 8) + $(number_at "$2" 58 2) * $(number_at "$2" 60 2) <= $(stat -c %s "$2"))) ||
        die "the kernel in $1 is cut off"
}

file_json() { # FILE
    jq -n --arg file "$(basename "$1")" --argjson size "$(stat -c %s "$1")" --arg sha256 "$(sha256sum "$1" | cut -d ' ' -f 1)" \
        '{$file, $size, $sha256}'
}

# packages.json: an array of {"name","version"}.
write_manifest() { # NAME TYPE KERNEL_VERSION DIGEST PACKAGES_JSON
    local files=null
    [[ ! -e $work/files.sha256 ]] || files=$(file_json "$work/files.sha256")
    jq -n --arg name "$1" --arg type "$2" --arg kernel_version "$3" --arg digest "$4" --slurpfile packages "$5" \
        --arg created_at "$(date -u +%Y-%m-%dT%H:%M:%SZ)" --arg uuid "$rootfs_uuid" \
        --argjson kernel "$(file_json "$work/vmlinuz")" --argjson vmlinux "$(file_json "$work/vmlinux")" --argjson initrd "$(file_json "$work/initrd.img")" \
        --argjson rootfs "$(file_json "$work/rootfs.ext4")" --argjson files "$files" '{
            schema: "image-manifest/1", $name, $type, $created_at, recipe_digest: $digest,
            kernel: ({version: $kernel_version} + $kernel), $vmlinux, $initrd, rootfs: ($rootfs + {$uuid}),
            packages: $packages[0], log: {file: "build.log"}} + (if $files then {$files} else {} end)' >"$work/manifest.json"
}

# By "agent" in the manifest the host knows that "running" must mean that it answers.
manifest_add_agent() { # STATIC-AGENT
    manifest_add agent "$(file_json "$1")"
}

manifest_add() { # MEMBER JSON
    jq --arg member "$1" --argjson value "$2" '. + {($member): $value}' "$work/manifest.json" >"$work/manifest.new"
    mv "$work/manifest.new" "$work/manifest.json"
}

swap_link() { # TARGET LINK
    ln -sfn "$1" "$2.new"
    mv -T "$2.new" "$2"
}

# Whether a VM's disk stands on an image: by a hard link, or, from another file system, by a symbolic one in the state
# folder that the image belongs to.
image_is_used() { # FOLDER
    (($(stat -c %h "$1/rootfs.ext4" 2>/dev/null || echo 1) > 1)) && return 0
    [[ $(find "$base"/../../{users,../users} -maxdepth 2 -name base.ext4 -lname "$1/*" 2>/dev/null || true) ]]
}

# Keeps the newest few, and whatever a VM stands on.
remove_old_images() {
    local old
    # Names begin with the time, so the oldest come first.
    find "$base" -mindepth 1 -maxdepth 1 -type d -name '2*Z-*' -printf '%f\n' | sort | head -n "-$image_keep_builds" |
        while read -r old; do
            image_is_used "$base/$old" || rm -rf "${base:?}/$old"
        done
}

# The build appears under its name only when it is whole and on the disk.
image_publish() {
    chmod 0444 "$work"/{rootfs.ext4,vmlinuz,vmlinux,initrd.img,manifest.json}
    sync -f "$work"
    mv -T "$work" "$base/$build_id"
    swap_link "$build_id" "$base/current"
    swap_link current/rootfs.ext4 "$base/golden-rootfs.ext4"
    swap_link current/manifest.json "$base/golden-rootfs.ext4.manifest.json"
    rm -f "$base/failed-build.log"
    remove_old_images
    printf '[%4d s] done: %s\n' "$SECONDS" "$base/current -> $build_id" >&2
}

# ---------------------------------------------------------------- the recipe's digest and the check

# One digest over names, modes and bytes of files and folders.
digest_of() { # ROOT PATH...
    local root=$1
    shift
    (
        cd "$root"
        find "$@" \( -type f -o -type l \) -printf '%p\t%m\t%l\n' | LC_ALL=C sort
        find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
    ) | sha256sum | cut -d ' ' -f 1
}

# Says in words why there is no good image in BASE. Quick: sizes, the two small files' digests, the file system's
# structure; not the digest of the whole root. Return: 0 good, 1 not.
image_check() { # BASE DIGEST
    local current=$1/current manifest=$1/current/manifest.json part file size have
    no() {
        echo "image: not good: $*"
        return 1
    }
    [[ -d $current ]] || no "there is none in $1" || return 1
    [[ -s $manifest ]] || no "$manifest is missing" || return 1
    [[ $(jq -r .schema "$manifest" 2>/dev/null) == image-manifest/1 ]] ||
        no "$manifest is not an image-manifest/1" || return 1
    [[ $(jq -r .recipe_digest "$manifest") == "$2" ]] ||
        no "the recipe, its scripts or the init have changed since it was built" || return 1
    for part in kernel vmlinux initrd rootfs; do
        file=$current/$(jq -r ".$part.file" "$manifest")
        size=$(jq -r ".$part.size" "$manifest")
        [[ -f $file ]] || no "$file is missing" || return 1
        have=$(stat -L -c %s "$file")
        [[ $have == "$size" ]] || no "$file has $have bytes, its manifest says $size" || return 1
        [[ $part == rootfs || $(sha256sum <"$file") == "$(jq -r ".$part.sha256" "$manifest")  -" ]] ||
            no "$file differs from what was built" || return 1
    done
    e2fsck -fn "$current/rootfs.ext4" >/dev/null 2>&1 || no "e2fsck finds errors in $current/rootfs.ext4" || return 1
    echo "image: good: $(readlink -f "$current")"
}
