# backupd with pg_dump and pg_restore of each major: no server, no perl, no compiler, no pip. Build it with scripts/image.
# Images are named in full, since podman does not guess where they are from.

# --- pg_dump and pg_restore, taken out of their packages, which would bring perl along

FROM docker.io/library/debian:trixie-slim AS clients
ARG PG_SOURCE=pgdg
ARG PG_MAJORS="14 15 16 17 18"
WORKDIR /packages
# A repository that does not answer is an error: else Debian's client would be taken in silence, where it has that major.
# The script that is run is the one by which Debian's postgresql-common sets up the PostgreSQL project's repository.
RUN set -e; \
    echo 'APT::Update::Error-Mode "any";' >/etc/apt/apt.conf.d/errors; \
    apt-get update -q; \
    case $PG_SOURCE in \
        debian) ;; \
        pgdg) apt-get install -qy --no-install-recommends ca-certificates postgresql-common; \
            sh /usr/share/postgresql-common/pgdg/*.sh -y ;; \
        *) echo "PG_SOURCE is $PG_SOURCE, and must be pgdg or debian" >&2; exit 2 ;; \
    esac; \
    apt-get download libpq5 $(printf 'postgresql-client-%s ' $PG_MAJORS); \
    mkdir /clients; \
    for package in postgresql-client-*.deb; do \
        dpkg --fsys-tarfile "$package" | tar -xC /clients --wildcards '*/bin/pg_dump' '*/bin/pg_restore'; \
    done

# --- backupd and what requirements.lock pins, in a virtual environment; built by Debian's hatchling, not by a fetched one

FROM docker.io/library/debian:trixie-slim AS python
RUN apt-get update -q && apt-get install -qy --no-install-recommends binutils python3-pip python3-hatchling
RUN python3 -m venv --without-pip /opt/backupd
WORKDIR /source
COPY requirements.lock ./
RUN pip --python /opt/backupd install --no-cache-dir --only-binary :all: --require-hashes -r requirements.lock
# botocore describes all of AWS, in 28 MB: kept is S3, and what its ways to credentials ask.
RUN cd /opt/backupd/lib/python3*/site-packages && rm -r boto3/data boto3/examples && \
    find botocore/data -mindepth 1 -maxdepth 1 -type d ! -regex '.*/\(s3\|sts\|sso\|sso-oidc\|signin\)' -exec rm -r {} +
# pygments knows 500 languages, none of which is printed; apprise brings pictures and translations, and OAuth for one
# service; PyYAML is as good in Python alone for what apprise asks of it; pydantic brings its first version along.
# Symbols of libraries are for debuggers.
RUN cd /opt/backupd/lib/python3*/site-packages && \
    find pygments/lexers -name '*.py*' ! -name '__init__*' ! -name '_mapping*' -delete && \
    rm -r apprise/i18n apprise/assets/themes oauthlib requests_oauthlib yaml/_yaml*.so pydantic/v1 && \
    find . -name '*.so*' ! -path '*.libs/*' -exec strip --strip-unneeded {} +
COPY pyproject.toml README.md LICENSE ./
COPY backupd backupd
RUN python3 -m hatchling build -t wheel -d /wheel && pip --python /opt/backupd install --no-deps --no-index /wheel/*.whl

# --- the image

FROM docker.io/library/debian:trixie-slim
# libpq is the one that the newest client was built with, as a package, so that scanners see it.
COPY --from=clients /packages/libpq5_*.deb /tmp/
RUN apt-get update -q && \
    apt-get install -qy --no-install-recommends \
        python3 tzdata ca-certificates libzstd1 liblz4-1 zlib1g /tmp/libpq5_*.deb && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/apt /var/log/dpkg.log /tmp/* \
        /usr/lib/python3*/test /usr/lib/python3*/pydoc_data /usr/lib/python3*/lib-dynload/_test*
COPY --from=clients /clients/usr/lib/postgresql /usr/lib/postgresql
COPY --from=python /opt/backupd /opt/backupd
# The clients find their libraries. A new volume takes its owner from the folder that it covers; OpenShift runs as group 0.
RUN for program in /usr/lib/postgresql/*/bin/*; do "$program" --version || exit; done && \
    install -d -o 10001 -g 0 -m 0770 /backups /scratch
# With SSL_CERT_FILE sslrootcert=system means the same to psycopg's libpq, which was built elsewhere, and to pg_dump's.
ENV PATH=/opt/backupd/bin:/usr/local/bin:/usr/bin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 10001:10001
# No init is needed: backupd reaps its children. No HEALTHCHECK: a run has its exit code.
# PID 1 has no default for SIGTERM: blocked until backupd has its handler, one that comes early waits and is not lost.
ENTRYPOINT ["env", "--block-signal=TERM,INT", "backupd"]
ARG VERSION=
ARG REVISION=
LABEL org.opencontainers.image.title="backupd" \
    org.opencontainers.image.description="PostgreSQL backups that are proven to restore" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.base.name="docker.io/library/debian:trixie-slim" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
