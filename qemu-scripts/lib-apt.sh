# shellcheck shell=bash
# Packages looked up, downloaded and unpacked without changing the machine's configuration.
# Sourced after lib.sh by get-kernel and get-qemu.
#
# A suite the machine does not use (such as its backports) is reached through a private sources
# file made from the machine's own entry for its base suite: same mirror, same keyring, same
# options, another suite name. So no address is written here, and a local mirror is respected.

# All source entries of the machine, as deb822 stanzas separated by empty lines.
machine_stanzas() {
    local f
    for f in /etc/apt/sources.list.d/*.sources; do
        [ -r "$f" ] || continue
        # Comments may stand between stanzas and would otherwise join them.
        grep -v '^#' "$f"
        echo
    done
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -r "$f" ] || continue
        # deb [option=value ...] URI SUITE COMPONENT...
        awk '$1 == "deb" {
            i = 2; signed = ""
            if ($i ~ /^\[/) {
                while (1) {
                    o = $i; gsub(/[\[\]]/, "", o)
                    if (o ~ /^signed-by=/) { signed = substr(o, 11); gsub(/,/, " ", signed) }
                    if ($i ~ /\]$/ || i > NF) break
                    i++
                }
                i++
            }
            print "Types: deb"; print "URIs: " $i; print "Suites: " $(i + 1)
            c = ""; for (j = i + 2; j <= NF && $j !~ /^#/; j++) c = c " " $j
            print "Components:" c
            if (signed != "") print "Signed-By: " signed
            print ""
        }' "$f"
    done
}

# stanza_for_suite NEW BASE: the machine's entry for suite BASE, rewritten to suite NEW.
stanza_for_suite() {
    machine_stanzas | awk -v new="$1" -v base="$2" '
        BEGIN { RS = ""; FS = "\n"; IGNORECASE = 1 }
        {
            types = suites = comps = ""; off = 0
            for (i = 1; i <= NF; i++) {
                split($i, kv, ":"); k = tolower(kv[1]); v = $i; sub(/^[^:]*:[ \t]*/, "", v)
                if (k == "types") types = " " v " "
                if (k == "suites") suites = " " v " "
                if (k == "components") comps = " " v " "
                if (k == "enabled" && tolower(v) ~ /^(no|false|0)/) off = 1
            }
            if (off || index(types, " deb ") == 0 || index(comps, " main ") == 0) next
            if (index(suites, " " base " ") == 0) next
            for (i = 1; i <= NF; i++) {
                l = $i
                if (tolower(l) ~ /^suites:/) l = "Suites: " new
                if (tolower(l) ~ /^types:/) l = "Types: deb"
                print l
            }
            exit
        }'
}

os_field() { sed -n "s/^$1=\"\{0,1\}\([^\"]*\)\"\{0,1\}\$/\1/p" /etc/os-release | head -n 1; }

# release_of SUITE: the release that a suite is built on, and takes libraries from.
release_of() { echo "${1%-backports}"; }

# suite_sources SUITE: its source entries, and those of its release.
suite_sources() {
    local machine release
    machine=$(os_field VERSION_CODENAME) release=$(release_of "$1")
    stanza_for_suite "$1" "$machine"
    if [ "$release" != "$1" ]; then
        echo
        stanza_for_suite "$release" "$machine"
    fi
    # A release's security fixes are in a suite of their own, which the machine knows if it is its own.
    if [ "$release" = "$machine" ]; then
        echo
        stanza_for_suite "$release-security" "$release-security"
    fi
}

# apt_use [SUITE]: sets APT_OPTS so that apt-get and apt-cache see what we want to see.
# Without SUITE the machine's own lists are used if it has any that know $2 (a package name).
apt_use() {
    local suite=${1:-} package=${2:-} dir sources
    have apt-get || die "apt-get is needed here; on other systems give KERNEL= or QEMU= yourself"
    # Time limits, so that a dead mirror does not look like a hang.
    APT_OPTS=(-o APT::Sandbox::User=root -o Acquire::http::Timeout=30 -o Acquire::Retries=2)
    if [ -z "$suite" ] && [ -n "$package" ] && apt-cache show "$package" >/dev/null 2>&1; then
        return
    fi
    dir=$VUZ_CACHE/apt/${suite:-machine}
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/sources.list.d"
    APT_OPTS+=(-o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache"
        -o Debug::NoLocking=1 -o Acquire::Languages=none)
    if [ -n "$suite" ]; then
        sources=$(suite_sources "$suite")
        [ -n "$sources" ] || die "no apt source for suite '$(os_field VERSION_CODENAME)' here to derive '$suite' from"
        if [ "$sources" != "$(cat "$dir"/sources.list.d/*.sources 2>/dev/null)" ]; then
            rm -rf "$dir/lists" "$dir"/sources.list.d/*
            mkdir -p "$dir/lists/partial"
            printf '%s\n' "$sources" >"$dir/sources.list.d/suite.sources"
        fi
        APT_OPTS+=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$dir/sources.list.d")
    fi
    # A list of the last day is good enough.
    if [ -z "$(find "$dir/lists" -maxdepth 1 -name '*Packages*' -mtime -1 2>/dev/null)" ]; then
        say "fetching the package lists of ${suite:-this machine} (private, in $dir)"
        apt-get -qq "${APT_OPTS[@]}" update >&2 || warn "apt-get update had errors"
    fi
}

# newest PACKAGE: prints its candidate version in what apt_use chose, whatever is installed.
newest() {
    apt-cache "${APT_OPTS[@]}" madison "$1" 2>/dev/null | awk -F' *\\| *' '$3 !~ /Sources$/ { print $2 }' |
        sort -rV | head -n 1
}

# fetch_unpack DIR PACKAGE=VERSION...: downloads the packages and unpacks them into DIR.
fetch_unpack() {
    local dir=$1 tmp deb
    shift
    mkdir -p "$dir" "$VUZ_CACHE"
    tmp=$(mktemp -d "$VUZ_CACHE/download.XXXXXX")
    if ! (cd "$tmp" && apt-get -qq "${APT_OPTS[@]}" download "$@" >&2); then
        rm -rf "$tmp"
        die "download failed: $*"
    fi
    for deb in "$tmp"/*.deb; do
        dpkg-deb -x "$deb" "$dir" || die "cannot unpack ${deb##*/}"
    done
    rm -rf "$tmp"
}

# source_sources SUITE: sets APT_OPTS so that apt-get sees the source packages of a suite, and fetches
# their lists. A machine without source entries is the usual case; its mirror has them all the same.
source_sources() {
    local dir=$VUZ_CACHE/apt/$1-source sources
    sources=$(suite_sources "$1" | sed 's/^Types:.*/Types: deb-src/')
    [ -n "$sources" ] || return 1
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" "$dir/sources.list.d" || return 1
    printf '%s\n' "$sources" >"$dir/sources.list.d/source.sources"
    APT_OPTS=(-o APT::Sandbox::User=root -o Acquire::http::Timeout=30 -o Acquire::Retries=2 -o Debug::NoLocking=1
        -o Acquire::Languages=none -o "Dir::State::lists=$dir/lists" -o "Dir::Cache=$dir/cache"
        -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$dir/sources.list.d")
    say "fetching the lists of $1's source packages (private, in $dir)"
    apt-get -qq "${APT_OPTS[@]}" update >&2 || warn "apt-get update had errors"
}

# newest_source PACKAGE: prints the newest source version in what source_sources chose.
newest_source() {
    apt-cache "${APT_OPTS[@]}" showsrc --only-source "$1" 2>/dev/null | sed -n 's/^Version: //p' | sort -rV |
        head -n 1 | grep .
}

# fetch_source DIR PACKAGE VERSION: what the project itself published of it, without the distribution's
# patches, unpacked into DIR.
fetch_source() {
    mkdir -p "$1" || return 1
    (cd "$1" && apt-get -qq "${APT_OPTS[@]}" --download-only source "$2=$3" >&2) || return 1
    tar -C "$1" --strip-components=1 -xf "$1"/*.orig.tar.* || return 1
    rm -f "$1"/*.orig.tar.* "$1"/*.debian.tar.* "$1"/*.dsc
}
