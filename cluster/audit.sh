#!/usr/bin/env bash
# Look up the packages of cluster/requirements.lock among the known vulnerabilities.
#
#   cluster/audit.sh    fails when one is known; says so and passes where no database answers
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly AUDIT=pip-audit==2.10.1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

[[ -x .uv/bin/uv ]] || { echo "audit: run cluster/setup.sh first" >&2; exit 1; }
# Its exit code does not tell a package with a vulnerability from one that it could not look up.
timeout 600 .uv/bin/uv tool run --quiet "$AUDIT" --requirement cluster/requirements.lock --require-hashes \
  --disable-pip --progress-spinner off --format json --output "$work/found.json" 2>"$work/words" || true
.venv/bin/python - "$work/found.json" <<'EOF'
import json
import sys
from pathlib import Path

path = Path(sys.argv[1])
packages = json.loads(path.read_text())["dependencies"] if path.exists() else []
looked_up = [package for package in packages if "vulns" in package]
if not looked_up:
    print("audit: skipped, no database of vulnerabilities can be reached", file=sys.stderr)
    sys.exit(0)
for package in packages:
    for found in package.get("vulns", []):
        fixed = ", ".join(found["fix_versions"]) or "nothing yet"
        print(f"{package['name']} {package['version']}: {found['id']}, mended by {fixed}")
print(f"audit: {len(looked_up)} of {len(packages)} packages were looked up", file=sys.stderr)
sys.exit(any(package["vulns"] for package in looked_up) and 3)
EOF
