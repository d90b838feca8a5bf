#!/usr/bin/env bash
# Everything that a fresh Debian or Ubuntu machine or cluster node needs, in .venv beside this
# checkout. To be run as often as you like: what is there already is left alone.
#
#   cluster/setup.sh [--dev] [--cpu | --cuda]
#
#   --dev   tests and linters too, and Prometheus for a test where Debian's package can be had
#   --cpu   torch without CUDA (3 GB less to download); the default where nvidia-smi finds nothing
#   --cuda  torch as PyPI has it, with CUDA; the default where nvidia-smi finds a GPU
#
# The CPU build of torch comes from a folder of wheels that UV_FIND_LINKS or PIP_FIND_LINKS names,
# or else from PyTorch's own index. All the rest comes from the index that uv is configured for
# (UV_DEFAULT_INDEX or PIP_INDEX_URL), and every file has to have a hash of requirements.lock.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly LOCK=cluster/requirements.lock
readonly PYTHON=.venv/bin/python
readonly UV=.uv/bin/uv

say() {
  echo "setup: $*" >&2
}

die() {
  say "$*"
  exit 1
}

usage() {
  sed -nE '2,/^set /{/^set /d; s/^# ?//; p}' "${BASH_SOURCE[0]}"
}

# Print the lock's entries of the named sections.
locked() {
  awk -v wanted=" $* " '/^# section: /{ on = index(wanted, " " $3 " ") } on' "$LOCK"
}

# Print the version of torch that the lock wants.
torch_version() {
  locked torch | sed -nE 's/^torch==([^ ]+).*/\1/p'
}

# Print cpu or cuda, whichever build of the wanted torch is installed; nothing if none is.
torch_build() {
  local info
  info=.venv/lib/python3.11/site-packages/torch-$(torch_version)
  if [[ -d $info+cpu.dist-info ]]; then
    echo cpu
  elif [[ -d $info.dist-info ]]; then
    echo cuda
  fi
}

# A CUDA build that is there already stays: it serves nodes without a GPU as well, and machines
# that share this folder must not take turns in replacing it.
choose_profile() {
  if [[ $(torch_build) == cuda ]] || nvidia-smi --list-gpus 2>/dev/null | grep -q GPU; then
    echo cuda
  else
    echo cpu
  fi
}

apt_install() {
  local root=()
  if [[ $EUID -ne 0 ]]; then
    root=(sudo -n)
  fi
  if ! command -v apt-get >/dev/null || ! "${root[@]}" true 2>/dev/null; then
    die "system packages are missing and this user may not install them:" \
      "have 'apt-get install --no-install-recommends $*' run, then run cluster/setup.sh again"
  fi
  say "installing system packages: $*"
  "${root[@]}" apt-get update -qq >&2
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# An environment with pip and the locked uv, whatever Python 3 it stands on.
provide_uv() {
  local wanted
  wanted=$(locked uv | sed -nE 's/^uv==([^ ]+).*/\1/p')
  if [[ $("$UV" --version 2>/dev/null) == "uv $wanted"* ]]; then
    return
  fi
  say "installing uv $wanted in .uv"
  if command -v uv >/dev/null; then
    uv venv --quiet --seed --clear .uv
  else
    python3 -c "import ensurepip" 2>/dev/null || apt_install python3-venv
    python3 -m venv --clear .uv
  fi
  locked uv >.uv/requirements.txt
  .uv/bin/python -m pip install --quiet --no-deps --require-hashes -r .uv/requirements.txt
}

provide_python() {
  if [[ $("$PYTHON" --version 2>/dev/null) == "Python 3.11."* ]]; then
    return
  fi
  say "creating .venv with Python 3.11"
  "$UV" venv --quiet --clear --python 3.11 .venv ||
    die "Python 3.11 is not here and uv could not fetch it: install python3.11, then run this again"
}

# EGL and GL for rendering (Mesa's, unless a driver brought its own), GLib for OpenCV.
provide_system_libraries() {
  local library package missing=()
  while read -r library package; do
    "$PYTHON" -c "import ctypes; ctypes.CDLL('$library')" 2>/dev/null || missing+=("$package")
  done <<<"libEGL.so.1 libegl1
libGL.so.1 libgl1
libgthread-2.0.so.0 libglib2.0-0"
  if ((${#missing[@]})); then
    apt_install "${missing[@]}"
  fi
}

# Fetch a package's file into the scratch folder, without installing it.
fetch_deb() {
  (cd "$scratch" && apt-get download -qq "$1") >/dev/null 2>&1
}

# The program alone, as the installed package would start a service; the tests can do without it.
provide_prometheus() {
  local root=()
  if [[ -x .venv/bin/prometheus ]] || command -v prometheus >/dev/null; then
    return
  fi
  [[ $EUID -eq 0 ]] || root=(sudo -n)
  say "fetching Prometheus"
  if ! fetch_deb prometheus &&
    ! { "${root[@]}" apt-get update -qq >/dev/null 2>&1 && fetch_deb prometheus; }; then
    say "there is no package prometheus to be had: the test of the dashboard will be skipped"
    return
  fi
  dpkg-deb --fsys-tarfile "$scratch"/prometheus_*.deb |
    tar --extract --directory "$scratch" ./usr/bin/prometheus
  install "$scratch/usr/bin/prometheus" .venv/bin/prometheus
}

# Install exactly the requirements read from standard input: no resolution, hashes verified, the
# build tools of source packages included.
install_locked() {
  local quiet=()
  [[ -t 2 ]] || quiet=(--quiet)
  "$UV" pip install "${quiet[@]}" --python "$PYTHON" --no-deps --require-hashes \
    --build-constraints "$LOCK" --requirements /dev/stdin "$@"
}

# Print the first folder of wheels that has torch's CPU build.
folder_of_cpu_torch() {
  local folder links="${UV_FIND_LINKS:-} ${PIP_FIND_LINKS:-}"
  for folder in ${links//,/ }; do
    folder=${folder#file://}
    if compgen -G "$folder/torch-$(torch_version)+cpu-cp311-*.whl" >/dev/null; then
      echo "$folder"
      return
    fi
  done
}

provide_cpu_torch() {
  local folder source="PyTorch's index" arguments=(--torch-backend cpu)
  if [[ $(torch_build) == cpu ]]; then
    return
  fi
  folder=$(folder_of_cpu_torch)
  if [[ -n $folder ]]; then
    source=$folder
    arguments=(--find-links "$folder")
  fi
  say "installing torch $(torch_version), CPU build, from $source"
  # uv looks a hash up under the exact version, local part included.
  locked torch | sed -E 's/^torch==[^ ]+/&+cpu/' | install_locked --reinstall-package torch "${arguments[@]}" ||
    die "torch's CPU build could not be installed: name a folder that holds its wheel in" \
      "PIP_FIND_LINKS, or run cluster/setup.sh --cuda (larger, and runs without a GPU as well)"
}

provide_packages() {
  local sections=("$@") arguments=()
  if [[ $profile == cuda ]]; then
    sections+=(torch cuda)
    [[ $(torch_build) == cuda ]] || arguments=(--reinstall-package torch)
  else
    provide_cpu_torch
  fi
  say "checking the packages of $LOCK ($profile): ${sections[*]}"
  locked "${sections[@]}" | install_locked "${arguments[@]}"
  [[ $(torch_build) == "$profile" ]] ||
    die "torch is not its $profile build: is UV_FIND_LINKS set to a folder that has another one?"
}

provide_project() {
  "$UV" pip install --quiet --python "$PYTHON" --no-deps --no-build-isolation --editable .
}

# Every process here imports torch and Ray; read from source, that takes it some seconds each time.
provide_bytecode() {
  local packages=.venv/lib/python3.11/site-packages stamp=.venv/compiled names
  names=$(printf '%s\n' "$packages"/*.dist-info)
  if [[ -f $stamp && $(<"$stamp") == "$names" ]]; then
    return
  fi
  say "compiling the packages' Python files, for a minute"
  # Some packages hold files that are no Python 3: they are left as they are.
  "$PYTHON" -m compileall -q -j 0 "$packages" >/dev/null 2>&1 || true
  echo "$names" >"$stamp"
}

provide_assets() {
  if "$PYTHON" -m drive_envs.metadrive_assets 2>/dev/null; then
    return
  fi
  say "building MetaDrive's assets from the wheel of 0.3.0.1"
  .uv/bin/python -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 \
    --dest "$scratch" metadrive-simulator==0.3.0.1
  "$PYTHON" -m drive_envs.metadrive_assets "$scratch"/metadrive_simulator-0.3.0.1-*.whl
}

# What the first process to drive would compile else, while others wait.
provide_loops() {
  "$PYTHON" -c "from drive_envs.reprojection_loops import compile_all; compile_all()"
}

profile=
sections=(packages)
for argument in "$@"; do
  case $argument in
    --dev) sections+=(dev) ;;
    --cpu | --cuda) profile=${argument#--} ;;
    -h | --help) usage && exit ;;
    *) die "unknown argument $argument: --dev, --cpu and --cuda are known" ;;
  esac
done
[[ $(uname -sm) == "Linux x86_64" ]] || die "$(uname -sm) is not supported: Linux x86_64 is"
if [[ -n ${PIP_INDEX_URL:-} ]]; then
  export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
exec 9>>"$LOCK" # nothing is written: one run at a time, as machines may share this folder
flock 9

profile=${profile:-$(choose_profile)}
provide_uv
provide_python
provide_system_libraries
provide_packages "${sections[@]}"
provide_project
provide_bytecode
provide_loops
provide_assets
if [[ " ${sections[*]} " == *" dev "* ]]; then
  provide_prometheus
fi
say "done: .venv/bin/drive --help"
