# SPDX-License-Identifier: Apache-2.0
"""The lab: what a cache that forgets does to a model, measured on tasks, streams and distributions."""
