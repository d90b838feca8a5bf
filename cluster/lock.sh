#!/usr/bin/env bash
# Write cluster/requirements.lock again, after a change of pyproject.toml.
#
#   cluster/lock.sh [--upgrade | --upgrade-package NAME ...]
#
# Versions that still fit are kept. One file serves every kind of machine, in sections, of
# which cluster/setup.sh installs those it needs:
#   uv        the installer, which gets a small environment of its own
#   torch     PyPI's build for CUDA; the CPU wheel of the same version is allowed by its hash
#   packages  what every machine needs
#   cuda      what PyPI's build of torch needs besides
#   dev       what tests and linters need besides
# The CPU wheel is read from the folder that UV_FIND_LINKS or PIP_FIND_LINKS names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lock=cluster/requirements.lock
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

die() {
  echo "lock: $*" >&2
  exit 1
}

resolve() {  # resolve OUTPUT ARGUMENT...: the pins in OUTPUT, if any, are preferred
  local output=$1
  shift
  # Without links to folders: a wheel that only lies there is not for every machine.
  env -u UV_FIND_LINKS uv pip compile pyproject.toml --group build --output-file "$output" \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --generate-hashes --no-header --no-emit-index-url "$@" >/dev/null
}

names() {
  sed -nE 's/^([a-z0-9][a-z0-9._-]*)(\[[^]]*\])?==.*/\1/p' "$1"
}

cpu_wheel() {  # the CPU build of torch VERSION for Linux on x86-64
  local folder
  for folder in ${UV_FIND_LINKS:-} ${PIP_FIND_LINKS:-}; do
    find "${folder#file://}" -maxdepth 1 -name "torch-$1+cpu-cp311-*x86_64.whl" 2>/dev/null
  done | head -n 1
}

command -v uv >/dev/null || die "uv is not on the PATH: run cluster/setup.sh, then PATH=.uv/bin:\$PATH cluster/lock.sh"
if [[ -f $lock ]]; then
  sed -nE 's/^([a-z0-9][^ ]*==[^ ]+).*/\1/p' "$lock" >"$work/all"
fi
resolve "$work/all" --group dev "$@"
cp "$work/all" "$work/product"
resolve "$work/product"
names "$work/product" >"$work/product_names"

version=$(sed -nE 's/^torch==([^ ]+).*/\1/p' "$work/all")
wheel=$(cpu_wheel "$version")
[[ -n $wheel ]] || die "no folder in PIP_FIND_LINKS has torch $version+cpu for Linux on x86-64"
hash=$(sha256sum "$wheel" | cut -d ' ' -f 1)

awk -v work="$work" -v hash="$hash" '
  FILENAME ~ /product_names$/ { product[$1] = 1; next }
  /^[a-z0-9]/ {
    name = $1
    sub(/[=[].*/, "", name)
    if (!(name in product)) section = "dev"
    else if (name ~ /^(nvidia|cuda|triton)(-|$)/) section = "cuda"
    else if (name == "torch" || name == "uv") section = name
    else section = "packages"
    print > (work "/section_" section)
    if (name == "torch") print "    --hash=sha256:" hash " \\" > (work "/section_torch")
    next
  }
  { print > (work "/section_" section) }
' "$work/product_names" "$work/all"

{
  echo "# Written by cluster/lock.sh from pyproject.toml: change that and run it again."
  echo "# Python 3.11, Linux, x86-64. cluster/setup.sh installs the sections that a machine needs."
  for section in uv torch packages cuda dev; do
    printf '\n# section: %s\n' "$section"
    cat "$work/section_$section"
  done
} >"$work/lock"
if grep -nE '://|^ *(-i|-f|--(extra-)?index-url|--find-links)\b' "$work/lock"; then
  die "the lock would name a host or a folder"
fi
mv "$work/lock" "$lock"
chmod 644 "$lock"
echo "lock: $(names "$lock" | wc -l) packages in $lock" >&2
