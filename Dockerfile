# All images of docker-compose.yml. Every base is an argument, and nothing here needs BuildKit.
#
#   docker build --target runtime -t agent-fleet .
#
# With a binary that was built elsewhere (for BASE_IMAGE's C library), no Rust image is needed:
#
#   docker build --target runtime -t agent-fleet \
#     --build-arg BINARY=dist/agent-fleet --build-arg BUILDER_IMAGE=debian:bookworm-slim .

ARG BASE_IMAGE=debian:bookworm-slim
ARG BUILDER_IMAGE=rust:1-bookworm

FROM ${BUILDER_IMAGE} AS builder
# A path below the build context; empty: build from source.
ARG BINARY=
WORKDIR /build
COPY . .
RUN if [ -z "$BINARY" ]; then cargo build --locked --release && BINARY=target/release/agent-fleet; fi; \
    install -D -m 755 "$BINARY" /out/agent-fleet

# The coordinator, the pull agent and the client commands.
FROM ${BASE_IMAGE} AS runtime
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates curl git openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 agent-fleet \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/agent-fleet --create-home --shell /usr/sbin/nologin agent-fleet \
    && install -d -o agent-fleet -g agent-fleet -m 700 /var/lib/agent-fleet
COPY --from=builder /out/agent-fleet /usr/local/bin/agent-fleet
USER agent-fleet
WORKDIR /var/lib/agent-fleet
EXPOSE 9090
# Ready, not only alive: a replica that is not ready must not count as up.
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
    CMD ["curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:9090/readyz"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["agent-fleet"]
CMD ["serve"]

# The pull agent of the demo: its CLI is a harmless script.
FROM runtime AS demo-agent
COPY src/cli/dev/demo_cli.sh /usr/local/bin/demo-cli
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 CMD ["test", "-s", "agent/agent-token"]
CMD ["agent", "--help"]

# The SSH host of the demo: sshd, an account, the same script. Nothing of agent-fleet is on it.
FROM ${BASE_IMAGE} AS demo-host
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends openssh-server \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && useradd --create-home --shell /bin/bash agents \
    && usermod -p '*' agents \
    && install -d -m 755 /run/sshd
COPY compose/sshd_config /etc/ssh/sshd_config
COPY src/cli/dev/demo_cli.sh /usr/local/bin/demo-cli
EXPOSE 22
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 \
    CMD ["sh", "-c", "ssh-keyscan -T 2 -t ed25519 127.0.0.1 2>/dev/null | grep -q ed25519"]
CMD ["/usr/sbin/sshd", "-D", "-e"]

# The load balancer.
FROM ${BASE_IMAGE} AS balancer
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends curl haproxy \
    && rm -rf /var/lib/apt/lists/*
COPY compose/haproxy.cfg /etc/haproxy/haproxy.cfg
USER haproxy
EXPOSE 9090 8404
# Some replica behind it is ready.
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
    CMD ["curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:9090/readyz"]
# Lets requests under way end, at most as long as hard-stop-after says.
STOPSIGNAL SIGUSR1
CMD ["haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"]
