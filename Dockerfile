# For Cloud TPU jobs: docs/cloud_tpu.md.
FROM python:3.12-slim

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /app

# Dependencies first: this layer stays as it is while only sources change. setup.cfg reads the version
# from the package.
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY mlc_jax/__init__.py mlc_jax/__init__.py
RUN pip install -c constraints.txt -e '.[tpu,gcs]'

COPY mlc_jax mlc_jax
COPY configs configs
COPY experiments experiments

# By number: a cluster that allows no root (runAsNonRoot) knows it by that. A directory that is mounted
# to be written to must be this user's; `docker run --user $(id -u)` takes another one.
RUN useradd --create-home --uid 1000 mlc
USER 1000:1000

# No entry point and no shell: a job's command is process 1, and SIGTERM reaches it.
CMD ["python", "-m", "mlc_jax.main", "--help"]
