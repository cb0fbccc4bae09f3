#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes .venv, the virtual environment of all scripts; prints nothing and is
# quick when it is up to date.
#
#   bash scripts/setup.sh [--cpu | --gpu | --system-site-packages]
#                         [--test] [--horovod] [--extras=NAME,...]
#
#   --cpu      TensorFlow for the CPU (requirements.txt), the default.
#   --gpu      TensorFlow for NVIDIA GPUs (requirements/gpu.txt).
#   --system-site-packages
#              The TensorFlow that is installed for the Python: Ascend hosts, where
#              it was installed with CANN. Implied where the Python that is
#              chosen has TensorFlow and the Ascend adapter.
#   --test     Adds what the tests need (requirements/test.txt).
#   --horovod  Compiles and adds Horovod (requirements/horovod.txt). HOROVOD_*
#              variables choose its parts; without any: Gloo, no MPI, no NCCL.
#
#   --extras=serve,plots,onnx,tokenizer,tasks,hub
#              Adds the packages of some optional features (requirements/NAME.txt),
#              --extras=all of these six; also: beam, and in its place dask.
#
# A .venv keeps its kind of TensorFlow until another is asked for, and its
# extras are brought up to date with requirements/.
#
# Environment:
#   PYTHON    The Python to use: a path, a command or a version such as 3.11.
#             Unset: python3.7, else 3.11, 3.10 or 3.9 (on PATH, then pyenv's),
#             else the 3.11 that uv finds or brings.
#   TENSORFLOW
#             2.6.5, for Ascend's second adapter, on Python 3.7 to 3.9
#             (requirements/tensorflow2.6.txt). Unset: the Python's release.
#   VENV_DIR  Where the environment goes; unset: .venv in this repository.
set -euo pipefail

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-}
TENSORFLOW=${TENSORFLOW:-}
VENV_DIR=${VENV_DIR:-$REPOSITORY/.venv}
WHEEL_DIR=${XDG_CACHE_HOME:-$HOME/.cache}/roberta-tf1/wheels

case $VENV_DIR in /*) ;; *) VENV_DIR=$PWD/$VENV_DIR ;; esac
STATE=$VENV_DIR/.setup  # What is installed; `incomplete` while it changes.
EXPECTED="Python 3.7 for TensorFlow 1.15.5, or 3.9 to 3.11 for 2.15.1"
PYTHONS="3.7 3.11 3.10 3.9"  # Best first.
ALL_EXTRAS=serve,plots,onnx,tokenizer,tasks,hub
OTHER_EXTRAS=beam,dask  # The records on many machines.
case $TENSORFLOW in
  "") ;;
  2.6.5) EXPECTED="Python 3.7 to 3.9 for TensorFlow 2.6.5"
         PYTHONS="3.7 3.9 3.8" ;;
  *) echo "setup.sh: error: TENSORFLOW=$TENSORFLOW: expected 2.6.5; PYTHON" \
          "chooses between 1.15.5 and 2.15.1" >&2
     exit 1 ;;
esac

say() { echo "set-up: $*" >&2; }

fail() { echo "setup.sh: error: $*" >&2; exit 1; }

usage() { sed -n '4,/^set -/{/^set -/d; s/^# \{0,1\}//; p;}' "$0"; }

parse_arguments() {
  kind="" with_test="" with_horovod="" extras=""  # No kind: the present one.
  local argument name
  for argument in "$@"; do
    case $argument in
      --cpu) kind=cpu ;;
      --gpu) kind=gpu ;;
      --system-site-packages) kind=system-site-packages ;;
      --test) with_test=yes ;;
      --horovod) with_horovod=yes ;;
      --extras=all) extras=${ALL_EXTRAS//,/ } ;;
      --extras=*) extras=${argument#*=} extras=${extras//,/ } ;;
      -h | --help) usage; exit 0 ;;
      *) fail "unknown argument '$argument'; bash scripts/setup.sh --help" \
              "lists the arguments" ;;
    esac
  done
  for name in $extras; do
    [[ ,$ALL_EXTRAS,$OTHER_EXTRAS, == *,$name,* ]] ||
        fail "--extras: unknown '$name'; expected all, or some of" \
             "$ALL_EXTRAS,$OTHER_EXTRAS"
  done
  if [[ -n $TENSORFLOW && $kind != system-site-packages ]]; then
    [[ -z $kind$with_horovod || $kind$with_horovod == cpu ]] ||
        fail "TENSORFLOW=$TENSORFLOW: neither --gpu nor --horovod go with it"
    kind=tensorflow-$TENSORFLOW
  fi
}

# --- Which Python -----------------------------------------------------------

# Prints "3.7 3.7.16 TRAITS EXECUTABLE" of the Python $1; fails if it does not
# run. EXECUTABLE is the Python behind a virtual environment or a pyenv shim.
probe() {
  "$1" -c '
import importlib.util, os, sys
traits = [name for name in ("ensurepip", "tensorflow", "npu_bridge",
                            "npu_device")
          if importlib.util.find_spec(name)]
version = "%d.%d" % sys.version_info[:2]
base = os.path.join(sys.base_prefix, "bin", "python" + version)
print(version, "%s.%d" % (version, sys.version_info[2]),
      ",".join(["is"] + traits),
      base if os.access(base, os.X_OK) else sys.executable)
' 2> /dev/null
}

# The Pythons of version $1 to try, best first.
candidates() {
  command -v "python$1" || true
  printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/"python$1" |
      sort -rV
}

has() { [[ ,$traits, == *,$1,* ]]; }

# Sets version, full_version, traits and executable if $1 can be used; else
# fails, with the problem in words if it runs at all.
examine() {
  local answer
  problem=""
  answer=$(probe "$1") || return 1
  read -r version full_version traits executable <<< "$answer"
  if [[ " $PYTHONS " != *" $version "* ]]; then
    problem="$1 is Python $full_version"
    return 1
  fi
  if ! has ensurepip; then
    problem="$1 cannot make virtual environments (Debian and Ubuntu:"
    problem+=" apt-get install python$version-venv)"
    return 1
  fi
  if [[ $version == 3.7 && $(uname -m) != x86_64 ]] && ! has tensorflow; then
    problem="$1 is Python 3.7, for which TensorFlow 1.15.5 has no $(uname -m)"
    problem+=" wheel: take Python 3.9 to 3.11, or on an Ascend host install"
    problem+=" TensorFlow 1.15 as CANN's manual says and run this with"
    problem+=" --system-site-packages"
    return 1
  fi
}

# Examines the Pythons of the versions given until one can be used.
find_python() {
  local candidate release first_problem=""
  for release in "$@"; do
    while read -r candidate; do
      [[ -x $candidate ]] || continue
      examine "$candidate" && return
      : "${first_problem:=$problem}"
    done < <(candidates "$release")
  done
  problem=$first_problem
  return 1
}

# uv's own Python, downloaded if need be; outside of any project or
# environment, whose Python uv would answer with.
find_uv_python() {
  [[ -z $TENSORFLOW ]] && command -v uv > /dev/null || return 1
  say "no $EXPECTED found; asking uv for Python 3.11"
  (cd / && unset VIRTUAL_ENV &&
      { uv python find 3.11 2> /dev/null ||
        { uv python install 3.11 >&2 && uv python find 3.11; }; })
}

choose_python() {
  local uv_python cause
  case $PYTHON in
    "")
      # shellcheck disable=SC2086  # A list.
      find_python $PYTHONS && return
      cause=$problem
      uv_python=$(find_uv_python) && examine "$uv_python" && return
      fail "no usable Python found${cause:+ ($cause)}; install $EXPECTED, e.g." \
           "'pyenv install 3.7', 'apt-get install python3.11-venv', 'dnf" \
           "install python3.11' or uv (which brings one), or set" \
           "PYTHON=/path/to/python" ;;
    3.* | python3.*)
      find_python "${PYTHON#python}" && return
      cause=${problem:-not found on PATH or among pyenv\'s versions}
      fail "PYTHON=$PYTHON: $cause; expected $EXPECTED" ;;
    *)
      command -v "$PYTHON" > /dev/null ||
          fail "PYTHON=$PYTHON: command not found; expected $EXPECTED"
      examine "$PYTHON" || fail "PYTHON=$PYTHON:" \
          "${problem:-not a Python 3 that runs}; expected $EXPECTED" ;;
  esac
}

# --- What is installed ------------------------------------------------------

state() { cat "$STATE/$1" 2> /dev/null || true; }

is_same() { cmp -s "$REPOSITORY/$1" "$STATE/$1"; }

requirements_file() {
  case $(state kind) in
    gpu) echo requirements/gpu.txt ;;
    tensorflow-2.6.5) echo requirements/tensorflow2.6.txt ;;
    *) echo requirements.txt ;;
  esac
}

test_file() {
  if [[ $(state kind) == tensorflow-2.6.5 ]]; then
    echo requirements/tensorflow2.6_test.txt
  else
    echo requirements/test.txt
  fi
}

# The GPU's requirements take their versions from requirements.txt.
has_requirements() {
  is_same "$(requirements_file)" && is_same requirements.txt
}

has_test() { is_same "$(test_file)"; }

# The extras that are asked for, and those that are there, are not up to date.
missing_extras() {
  local name
  for name in ${ALL_EXTRAS//,/ } ${OTHER_EXTRAS//,/ }; do
    if [[ " $extras " == *" $name "* || -e $STATE/requirements/$name.txt ]]; then
      is_same "requirements/$name.txt" || echo "$name"
    fi
  done
}

has_horovod() {
  is_same requirements/horovod.txt &&
      [[ $(state horovod_settings) == "$(horovod_settings)" ]]
}

is_complete() {
  find_reason_to_make
  [[ -z $reason ]] && has_requirements &&
      { [[ -z $with_test ]] || has_test; } && [[ -z $(missing_extras) ]] &&
      { [[ -z $with_horovod ]] || has_horovod; }
}

# Sets reason: why the environment must be made from nothing; empty if not.
find_reason_to_make() {
  reason=""
  if [[ ! -d $STATE ]]; then
    reason="it is new"
  elif [[ -e $STATE/incomplete ]]; then
    reason="an earlier set-up was interrupted"
  elif [[ ! -x $VENV_DIR/bin/python ]]; then
    reason="its Python is gone"
  elif [[ $(state directory) != "$VENV_DIR" ]]; then
    reason="it was moved here from $(state directory)"
  elif [[ -n $kind && $kind != "$(state kind)" ]]; then
    reason="it was made with --$(state kind), now --$kind is asked for"
  elif ! is_requested_python; then
    reason="it has Python $(state version) ($(state executable)),"
    reason+=" PYTHON=$PYTHON asks for another"
  fi
}

# Whether the environment's Python is the one that PYTHON names, if it does.
is_requested_python() {
  case $PYTHON in
    "") return 0 ;;
    3.*) [[ $(state version). == "$PYTHON".* ]] ;;
    *) choose_python
       [[ $(state executable) == "$executable" &&
          $(state version) == "$full_version" ]] ;;
  esac
}

# --- Making it --------------------------------------------------------------

# Runs a step after which, if it is interrupted, the next set-up starts over.
changing() {
  touch "$STATE/incomplete"
  "$@"
  rm "$STATE/incomplete"
}

# Only a directory that this script made, or an empty one, is ever emptied.
clear_directory() {
  find "$VENV_DIR" -mindepth 1 -maxdepth 1 ! -name .setup -exec rm -rf {} +
  find "$STATE" -mindepth 1 ! -name incomplete -delete
}

choose_kind() {
  if [[ -z $kind ]] && has tensorflow && { has npu_bridge || has npu_device; }
  then
    kind=system-site-packages
    say "$executable has TensorFlow and the Ascend adapter: using them"
  elif [[ $kind == system-site-packages ]] && ! has tensorflow; then
    fail "--system-site-packages: $executable has no TensorFlow; set PYTHON" \
         "to the Python that has it, or leave the flag out"
  fi
}

make_environment() {
  if [[ ! -d $STATE && -n $(ls -A "$VENV_DIR") ]]; then
    fail "$VENV_DIR was not made by this script; move it away or set" \
         "VENV_DIR to another directory"
  fi
  choose_python
  choose_kind
  say "making $VENV_DIR with Python $full_version ($executable): $reason"
  mkdir -p "$STATE"
  changing make_empty_environment
}

# Says every eight seconds that pip is running, while this script runs.
tell_of_pip() {
  while sleep 8 &> /dev/null 9>&- && kill -0 $$ 2> /dev/null; do
    say "pip is running: $SECONDS s since the start"
  done
}

# Runs a command that calls pip.
telling() {
  local teller failed=
  tell_of_pip &
  teller=$!
  "$@" || failed=1
  kill "$teller" 2> /dev/null || true
  wait "$teller" 2> /dev/null || true
  [[ -z $failed ]]
}

make_empty_environment() {
  clear_directory
  local options=()
  [[ $kind != system-site-packages ]] || options=(--system-site-packages)
  telling "$executable" -m venv ${options[@]+"${options[@]}"} "$VENV_DIR" ||
      fail "$executable could not make $VENV_DIR"
  echo "${kind:-cpu}" > "$STATE/kind"
  echo "$full_version" > "$STATE/version"
  echo "$executable" > "$STATE/executable"
  echo "$VENV_DIR" > "$STATE/directory"
}

venv_python() { TF_CPP_MIN_LOG_LEVEL=3 "$VENV_DIR/bin/python" -W ignore "$@"; }

pip_install() {
  telling venv_python -m pip --disable-pip-version-check -qq install "$@" ||
      fail "pip could not install $*; see its message above"
}

# Installs a requirements file, and notes that it has.
install_file() {
  say "installing $1"
  (cd "$REPOSITORY" && pip_install --requirement "$1")
  mkdir -p "$STATE/requirements"
  cp "$REPOSITORY/$1" "$STATE/$1"
}

# Installs requirements/$1.txt beside what TensorFlow was installed with, which
# may differ from requirements.txt.
install_extra() {
  local file=requirements/$1.txt
  say "installing $file"
  grep -v '^--constraint' "$REPOSITORY/$file" > "$STATE/extra.txt"
  venv_python -m pip --disable-pip-version-check freeze |
      grep -iE '^(tensorflow|keras|numpy|absl|six|typing)[^ ]*==' \
      > "$STATE/constraints.txt" || true
  pip_install --constraint "$STATE/constraints.txt" \
      --requirement "$STATE/extra.txt"
  mkdir -p "$STATE/requirements"
  cp "$REPOSITORY/$file" "$STATE/$file"
}

# TensorFlow, and what it is compiled against, are left as they are.
install_beside_system() {
  local file=requirements.txt
  [[ $(venv_python -c 'import tensorflow as tf; print(tf.__version__)') != 2.6.* ]] ||
      file=requirements/tensorflow2.6.txt
  say "installing $file, but for TensorFlow and what it needs"
  grep -vE '^(tensorflow|keras|numpy|protobuf|typing-ext)' "$REPOSITORY/$file" \
      > "$STATE/others.txt"
  pip_install --requirement "$STATE/others.txt"
}

install_requirements() {
  rm -f "$STATE/requirements/horovod.txt"  # It depends on TensorFlow.
  if [[ $(state kind) == system-site-packages ]]; then
    install_beside_system
  else
    install_file "$(requirements_file)"
  fi
  venv_python -c 'import tensorflow; print(tensorflow.__version__)' \
      > "$STATE/tensorflow" 2> "$STATE/log" || {
    cat "$STATE/log" >&2
    fail "TensorFlow is installed, but does not import; see above"
  }
  cp "$REPOSITORY/requirements.txt" "$STATE/requirements.txt"
}

# --- Horovod ----------------------------------------------------------------

# Horovod's own variables, Gloo alone by default.
set_horovod_defaults() {
  export HOROVOD_WITH_TENSORFLOW=1
  export HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
  [[ -n ${HOROVOD_WITH_MPI:-} ]] || export HOROVOD_WITHOUT_MPI=1
  [[ -n ${HOROVOD_WITHOUT_GLOO:-} ]] || export HOROVOD_WITH_GLOO=1
}

# Those that matter when it is compiled.
horovod_settings() {
  env | grep -E '^HOROVOD_(WITH|GPU|CPU|CUDA|BUILD|ROCM|NCCL|MPI|CMAKE)' |
      LC_ALL=C sort
}

# A Horovod that was there before stays, with the settings it had.
keep_horovod() {
  local setting
  if [[ -z $with_horovod && -e $STATE/requirements/horovod.txt ]]; then
    with_horovod=yes
    while read -r setting; do
      export "${setting?}"
    done < "$STATE/horovod_settings"
  fi
}

# Where the wheel is kept; all that it depends on is in the name.
horovod_wheel_dir() {
  local tags settings
  tags=$(venv_python -c 'import sys, sysconfig
print("cp%d%d-%s" % (sys.version_info[:2] + (sysconfig.get_platform(),)))')
  settings=$(horovod_settings | cksum | cut -d " " -f 1)
  echo "$WHEEL_DIR/$tags-tensorflow-$(state tensorflow)-$(state kind)-$settings"
}

# Compiles $1 into the directory $2, which appears when it is complete.
compile_horovod() {
  local requirement=$1 target=$2 tool build started=$SECONDS
  for tool in g++ cmake; do
    command -v "$tool" > /dev/null ||
        fail "--horovod needs $tool (Debian and Ubuntu: apt-get install g++" \
             "cmake; CentOS: yum install gcc-c++ cmake)"
  done
  mkdir -p "$WHEEL_DIR"
  build=$(mktemp -d "$WHEEL_DIR/.build.XXXXXX")
  say "compiling $requirement, once, for some minutes; log: $build/log"
  # Without pip's own cache, which does not tell one TensorFlow from another.
  MAKEFLAGS=${MAKEFLAGS:--j$(getconf _NPROCESSORS_ONLN)} \
      venv_python -m pip --disable-pip-version-check wheel --no-cache-dir \
      --no-deps --no-build-isolation --wheel-dir "$build" "$requirement" \
      > "$build/log" 2>&1 || {
    tail -n 30 "$build/log" >&2
    fail "$requirement does not compile here; the log is $build/log"
  }
  rm -rf "$target"
  mv "$build" "$target"
  say "compiled in $((SECONDS - started)) s, kept in $target"
}

install_horovod() {
  local file=$REPOSITORY/requirements/horovod.txt requirement target
  requirement=$(grep '^horovod==' "$file")
  grep -v '^horovod==' "$file" > "$STATE/horovod_tools.txt"
  changing pip_install --requirement "$STATE/horovod_tools.txt"
  target=$(horovod_wheel_dir)-${requirement/==/-}
  compgen -G "$target/*.whl" > /dev/null ||
      compile_horovod "$requirement" "$target"
  say "installing $requirement"
  changing pip_install --force-reinstall --no-deps "$target"/*.whl
  changing pip_install "$target"/*.whl  # What it depends on.
  venv_python -c 'import horovod.tensorflow as hvd; hvd.init()' \
      > "$STATE/log" 2>&1 || {
    cat "$STATE/log" >&2
    fail "Horovod is installed, but does not start: see above. If the wheel" \
         "was compiled for another machine, remove $target"
  }
  horovod_settings > "$STATE/horovod_settings"
  mkdir -p "$STATE/requirements"
  cp "$file" "$STATE/requirements/horovod.txt"
}

# --- All of it --------------------------------------------------------------

main() {
  local name
  parse_arguments "$@"
  [[ -z $with_horovod ]] || set_horovod_defaults
  if is_complete; then return; fi
  mkdir -p "$VENV_DIR"
  # One set-up at a time; some network file systems have no such locks.
  exec 9< "$VENV_DIR"
  flock 9 2> /dev/null || true
  if is_complete; then return; fi
  keep_horovod
  [[ -z $reason ]] || make_environment
  has_requirements || changing install_requirements
  [[ -z $with_test ]] || has_test || changing install_file "$(test_file)"
  for name in $(missing_extras); do changing install_extra "$name"; done
  [[ -z $with_horovod ]] || has_horovod || install_horovod
  say "$VENV_DIR is ready: Python $(state version), TensorFlow" \
      "$(state tensorflow); took $SECONDS s"
}

main "$@"
