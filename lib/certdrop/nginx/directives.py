"""What nginx's directives can do to a request, by their names: those that have no say in whether a token is served, and those that serve in place of files.

What is in neither list, as of a module that nginx.org does not have, is not known to let a token through. Runs as: anyone. Trusts, reads,
writes: nothing. Source: nginx's "Alphabetical index of directives", for 1.29.
"""

from __future__ import annotations

import re

from certdrop.nginx.syntax import Directive

_HANDLERS = re.compile(r".*_pass|empty_gif|stub_status|perl|api|status|upstream_conf|hls|f4f|echo\w*|(content|rewrite|access)_by_lua\w*|js_content|"
                       r"check_status|rtmp_stat|vhost_traffic_status_display|(nchan|push_stream)_(publisher|subscriber|pubsub)\w*")

# Followed by request/, or of no concern to one that fetches a token.
_KNOWN = re.compile(r"""
    (proxy|fastcgi|uwsgi|scgi|grpc|memcached|ssl|client|gzip|gunzip|brotli|zstd|open_file_cache|keepalive|http2|http3|quic|resolver|sendfile|send|tcp|
     lingering|limit_rate|limit_conn|limit_req|index|autoindex|userid|charset|source_charset|override_charset|msie|directio|aio|output|types_hash|
     variables_hash|server_names_hash|map_hash|real_ip|geoip2?|ssi|sub_filter|secure_link|dav|mp4|xslt|image_filter|auth_request|auth_basic|auth_jwt|
     vhost_traffic_status|health_check|otel|opentracing|spdy|lua|init_by_lua|init_worker_by_lua|log_by_lua|server_tokens)(_\w+)?
    | \w+_buffers? | \w+_buffer_size | \w+_pool_size | \w+_log
    | absolute_redirect | add_(header|trailer|before_body|after_body) | addition_types | alias | allow | ancient_browser\w* | auth_(delay|digest|gss|pam|ldap)
    | break | chunked_transfer_encoding | connections | create_full_put_path | default_type | deny | disable_symlinks | early_hints | empty_gif | error_page
    | etag | expires | flv | geo | http | if | if_modified_since | ignore_invalid_headers | include | internal | js_(import|path|var|preload_object)
    | limit_except | listen | location | max_headers | open_log_file_cache
    | log_(format|not_found|subrequest|escape_non_ascii) | map | match | max_ranges | merge_slashes | min_delete_depth
    | mirror(_request_body)? | modern_browser\w* | more_(set|clear)_headers | perl(_\w+)? | port_in_redirect | postpone_output | random_index
    | read_ahead | recursive_error_pages | referer_hash\w+ | reset_timedout_connection | return | rewrite | root | satisfy | server | server_name
    | server_name_in_redirect | server_rewrite_log | set | set_real_ip_from | slice | split_clients | status_zone | stub_status | try_files | types
    | underscores_in_headers | uninitialized_variable_warn | upstream | valid_referers | xml_entities | zone""", re.VERBOSE)


def is_known(name: str) -> bool:
    """Whether it is of no concern where a token is served, or is followed."""
    return _KNOWN.fullmatch(name) is not None


def is_handler(one: Directive) -> bool:
    """Whether it has something else answer than files."""
    return _HANDLERS.fullmatch(one.name) is not None
