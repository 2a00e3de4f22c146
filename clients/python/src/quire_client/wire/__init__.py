"""Generated from proto/quire/v1 by generate_stubs.py; do not edit."""
