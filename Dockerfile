# A small image with one binary, for any user but root.
#
#   docker build -t stepwell .
#   docker run -p 8080:8080 -v stepwell:/data -e STEPWELL_ADMIN_KEY=$(openssl rand -hex 32) stepwell
#
# In a container the server has to listen on all addresses, and then it refuses to start without
# STEPWELL_ADMIN_KEY (at least 32 characters). /data holds the SQLite file; a stepwell.yaml that is
# mounted as /data/stepwell.yaml is read. With STEPWELL_DATABASE_URL=postgres://… nothing is kept in it.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
# The dependencies first, with an empty crate: they are built again only when Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/it \
 && echo 'fn main() {}' > src/main.rs \
 && touch src/lib.rs tests/it/main.rs \
 && cargo build --release --locked \
 && rm -rf src tests
COPY . .
# Cargo compares times, and a checkout may be older than the empty crate.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked --bin stepwell

FROM debian:bookworm-slim
# Certificates, to call model providers.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin stepwell \
 && install -d -o stepwell -g stepwell /data
COPY --from=build /src/target/release/stepwell /usr/local/bin/stepwell
USER 10001
WORKDIR /data
VOLUME /data
ENV STEPWELL_LISTEN=0.0.0.0:8080 \
    STEPWELL_DATABASE_URL=sqlite:///data/stepwell.db
EXPOSE 8080
# SIGTERM drains: give it time (docker stop --time 40).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["stepwell", "healthcheck"]
ENTRYPOINT ["stepwell"]
CMD ["serve"]
