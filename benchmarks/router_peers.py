"""The programs the router is measured with: Envoy, nginx and h2load.

The scripts in deploy/ find them. What is not on this machine is fetched into the cache on
first use, and not installed. What cannot be had is left out, and that is said.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"


def envoy() -> Path | None:
    return _found("envoy.sh")


def nginx() -> Path | None:
    return _found("debian.sh", "nginx", "nginx", "-v")


def h2load() -> Path:
    found = _found("debian.sh", "h2load", "nghttp2-client")
    if found is None:
        raise SystemExit("the load comes from h2load")
    return found


def _found(script: str, *arguments: str) -> Path | None:
    """What the script prints; None where it says, on stderr, why that cannot be had."""
    done = subprocess.run(
        [DEPLOY / script, *arguments], check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        print("left out, for the reason above")
        return None
    return Path(done.stdout.strip())


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
