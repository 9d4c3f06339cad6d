"""Configurations of nginx, made at random of what administrators write: the inside of http, with a few names and addresses to ask for.

Each part is drawn with weights: mostly what is usual, now and then what is odd. The same seed makes the same text.
"""

from __future__ import annotations

import random

NAMES = ("a.test", "www.a.test", "b.test", "x.b.test", "other.test")
IPV4, IPV6 = ("127.0.0.1", "192.0.2.1"), ("[::1]", "[2001:db8::1]")
SPOOL = "/var/spool/certdrop/challenges"
PATH = "/.well-known/acme-challenge/"
ROOM = "/tmp/ways"                     # users: a password file; web: a web root, in which linked/ leads to the challenges; missing: nothing


class Grammar:
    """Draws one configuration."""

    def __init__(self, seed: object) -> None:
        self.chance = random.Random(str(seed))
        self.is_odd = str(seed).startswith("odd")          # what is odd as often as what is usual
        self.variables: list[str] = []                     # that a map or a geo makes

    def some(self, probability: float) -> bool:
        """Whether, this time."""
        return self.chance.random() < probability

    def one(self, *choices: str) -> str:
        """One of these, the first ones more often than the last."""
        if self.is_odd:
            return self.chance.choice(choices)
        at = len(choices)
        while at >= len(choices):
            at = int(self.chance.expovariate(2.2 / len(choices) ** 0.9))
        return choices[at]

    def any(self, *choices: str) -> str:
        """One of these, each as often."""
        return self.chance.choice(choices)

    # ---- http

    def http(self) -> str:
        """The inside of http, but for what the place needs."""
        parts = [self.map() for _ in range(self.chance.choice((0, 0, 0, 1, 2)))]
        if self.some(0.15):
            parts.append("limit_req_zone $binary_remote_addr zone=req:1m rate=100r/s; limit_conn_zone $binary_remote_addr zone=conn:1m;"
                         + self.any(" limit_req zone=req;", " limit_req zone=req burst=5;", " limit_conn conn 5;"))
        parts += [self.setting() for _ in range(self.chance.choice((0, 0, 0, 1)))]
        parts += [self.server() for _ in range(self.chance.choice((1, 1, 2, 2, 3)))]
        return "\n".join(parts) + "\n"

    def map(self) -> str:
        """A map or geo."""
        name = f"$m{len(self.variables)}"
        self.variables.append(name)
        kind = self.chance.randrange(6)
        if kind == 5 and self.some(0.4):
            return self.any(f"map $uri {name} {{ ~^{PATH}(.*)$ $1; }}", f"map $uri {name} {{ default 0; ~^{PATH}(?<token>.+)$ $token; }}",
                            f"split_clients $host {name} {{ 50% 1; * 0; }}", f"map $request_uri {name} {{ ~acme {SPOOL}; default /srv; }}",
                            f"map $host$uri {name} {{ volatile; ~test 1; }}", f"geo $arg_x {name} {{ default 1; 10.0.0.0/8 0; }}",
                            f"geo {name} {{ default 0; 23.0.0.0/8 1; }}",
                            f"map $m0 {name} {{ 1 yes; default no; }}" if name != "$m0" else f"map $x {name} {{ 1 0; 0 1; }}")
        if kind == 0:
            return f"geo {name} {{ default {self.any('0', '1')}; {self.any('10.0.0.0/8', '192.168.0.0/16', '127.0.0.0/8')} {self.any('1', '0')}; }}"
        source = self.any("$host", "$request_uri", "$uri", "$scheme", "$http_cookie", "$cookie_in", "$http_x_forwarded_proto", "$args", "$request_method",
                          "$server_port", "$https", "$scheme$host", "$http_upgrade")
        entries = self.chance.sample(["default 0;", "default 1;", "a.test 1;", "~^/\\.well-known 1;", "~*ACME 0;", "http 1;", "'' 0;", "\"\" 1;", "GET 1;",
                                      "~(?<k>test)$ 1;", "80 0;", "httpa.test 1;", "on 0;", "b.test $host;"], self.chance.randrange(1, 4))
        if source == "$host" and self.some(0.3):
            entries = ["hostnames;", self.any("*.test 1;", ".a.test 1;", "www.* 1;"), *entries]
        seen: dict[str, str] = {}
        for entry in entries:
            seen.setdefault({"''": '""'}.get(entry.split()[0], entry.split()[0]), entry)
        return f"map {source} {name} {{ {' '.join(seen.values())} }}"

    # ---- server

    def server(self) -> str:
        """A server block."""
        inside = [self.listens(), self.names()]
        body = [self.setting() for _ in range(self.chance.choice((0, 0, 0, 0, 1, 1, 2)))]
        if self.some(0.45):
            body += [self.statement() for _ in range(self.chance.choice((1, 1, 2, 3)))]
        if self.some(0.4):
            body.append(f"root {self.any('/var/www/html', ROOM + '/web', ROOM + '/web/linked', '/var/www/$host', 'html')};")
        if self.some(0.05):
            body.append("try_files $uri $uri/ =404;")
        locations = self.locations()
        if self.some(0.8):
            locations.insert(self.chance.randrange(len(locations) + 1), self.challenge())
        body += locations
        if self.some(0.3):
            self.chance.shuffle(body)
        text = self.once([*inside, *body])
        return "server {\n" + "".join(f"    {line}\n" for line in text) + "}"

    @staticmethod
    def once(lines: list[str]) -> list[str]:
        """Without a second line of what may stand there once, or a second location of the same name."""
        seen: dict[str, str] = {}
        for line in lines:
            word = line.split()[0] if line.split() else ""
            key = line.partition("{")[0].replace("^~ ", "") if word == "location" else line.partition(";")[0] if word in (
                "set", "if", "rewrite", "return", "listen", "allow", "deny", "error_page", "break") else word
            if word == "include":
                key = f"location {PATH} "
            if word in ("set", "if", "rewrite", "return", "allow", "deny", "error_page", "break"):
                key += str(len(seen))
            seen.setdefault(key, line)
        return list(seen.values())

    def listens(self) -> str:
        """Where it listens."""
        plain = self.one("listen 80; listen [::]:80;", "listen 80;", "listen 80 default_server; listen [::]:80 default_server;", "", "listen 127.0.0.1:80;",
                         "listen localhost:80;", "listen 79-81;", "listen [0:0:0:0:0:0:0:1]:80; listen *:80;", "listen 192.0.2.1:80; listen [2001:db8::1]:80;",
                         "listen 8080;", "listen [::]:80;")
        if self.some(0.03):
            plain = plain.replace("listen 80", "listen 80 " + self.any("ssl", "proxy_protocol", "http2", "reuseport", "backlog=511"), 1)
        if self.some(0.03):
            plain += f" listen unix:{ROOM}/socket{self.chance.randrange(10 ** 6)};"
        if self.some(0.03):
            plain += f" listen 443; ssl {self.any('on', 'on', 'off')}; ssl_certificate {ROOM}/pair.pem; ssl_certificate_key {ROOM}/pair.pem;"
        elif self.some(0.2):
            plain += f" listen 443 ssl; listen [::]:443 ssl; ssl_certificate {ROOM}/pair.pem; ssl_certificate_key {ROOM}/pair.pem;"
            if self.some(0.1):
                plain += f" ssl_reject_handshake {self.any('on', 'off')};" if self.some(0.3) else \
                    f" ssl_client_certificate {ROOM}/pair.pem; ssl_verify_client {self.any('on', 'optional', 'off')};"
        return plain.replace("default_server", "") if self.some(0.8) else plain

    def names(self) -> str:
        """What it answers for."""
        return "server_name " + self.one("a.test", "a.test www.a.test", "b.test", "_", "\"\"", "*.a.test", "www.*", ".b.test", "~^(?<sub>\\w+)\\.b\\.test$",
                                         "~^(www\\.)?(.+)$", "$hostname", "A.TEST x.b.test") + ";" if self.some(0.95) else ""

    def setting(self) -> str:
        """What holds below, too."""
        return self.one(
            "index index.html;", "default_type text/html;", "error_page 404 /404.html;", "error_page 500 502 503 504 /50x.html;",
            "deny 10.0.0.0/8;", "allow all;", "deny all;", f"auth_basic secret; auth_basic_user_file {ROOM}/users;", "auth_basic secret;",
            "auth_request /auth;",
            "satisfy any;", "error_page 403 404 = @fallback;", "error_page 404 =200 /fallback;", "error_page 403 https://$host/why;",
            "sub_filter '</head>' '<x>';",
            "add_before_body /before;", "disable_symlinks on;", "disable_symlinks if_not_owner;", "mirror /mirror;",
            "add_header X y always;", "satisfy any; allow 192.168.0.0/16; deny all; auth_basic x; auth_basic_user_file " + ROOM + "/users;",
            "allow 10.0.0.0/8; deny all;", "allow 10.0.0.0/8; allow all; deny all;", "recursive_error_pages on;", "expires 1d;", "gzip on; gzip_types *;",
            "limit_rate 100k;", "types { }", "autoindex on;", "gzip_static on;", "charset utf-8;", "ssi on;", "server_tokens off;", "open_file_cache max=100;",
            "error_page 401 =200 /fallback;", "error_page 405 =301 /moved;", "auth_basic off;",
            "server_name_in_redirect on;", "absolute_redirect off;", "merge_slashes off;", "valid_referers none blocked a.test;", "valid_referers a.test;",
            "deny ::/0;", "allow 0.0.0.0/0; deny all;", "allow 2600::/12; deny all;", "deny 23.0.0.0/8;", "satisfy any; auth_request /auth; deny all;",
            "error_page 418 = @fallback;", "error_page 404 =301 https://$host$request_uri;", "error_page 401 403 404 /errors.html;", "userid on;",
            "gzip_static always;", "addition_types text/plain; add_after_body /after;", "sub_filter_types text/plain; sub_filter 'wa' 'x';",
            "auth_request off;", "sub_filter 'a' 'b'; sub_filter_types *;", "add_trailer X y;", "max_ranges 0;", "postpone_output 0;", "limit_rate_after 1k;",
            "if_modified_since off;", "chunked_transfer_encoding off;", "log_not_found off;", "set_real_ip_from 0.0.0.0/0; real_ip_header X-Forwarded-For;",
            "etag off;", "default_type \"\";", "error_page 403 404 =200 @fallback;", "error_page 404 $uri.html;", "subrequest_output_buffer_size 1k;",
            "error_page 401 403 $scheme://$host/login;", "error_page 404 /.well-known/acme-challenge/x;", "gunzip on;", "autoindex_format json;",
            "sub_filter_once off; sub_filter \"\" x;", "add_before_body \"\";", "error_page 404 = /index.php?$args;", "slice 1k;")

    # ---- the rewrite module

    def condition(self) -> str:
        """What an if asks."""
        if self.variables and self.some(0.15):
            return self.any(*self.variables) + self.any("", " = 1", " != 0", " ~ ^1")
        return self.one(
            "$host = a.test", "$scheme = http", "$scheme != \"https\"", "$host != $server_name", "$request_uri !~ ^/\\.well-known/acme-challenge/",
            "$request_method !~ ^(GET|HEAD|POST)$", "$host = www.a.test", "$uri ~ ^/\\.well-known/", "-f $document_root/maintenance.html",
            "-f " + ROOM + "/web/there", "!-e $request_filename", "$http_x_forwarded_proto = http", "$http_x_forwarded_proto != https", "$query_string ~ x",
            "$args", "$arg_debug", "$cookie_in", "$cookie_in = \"\"",
            "$http_referer ~ spam", "$request_method = POST", "$request_method = GET", "$https = \"\"",
            "$server_protocol ~ ^HTTP/1", "$server_port = 80", "$x", "$x = 1", "$host ~ ^(www\\.)?(.*)$", "$host ~* \"^(?<h>[a-z]+)\\.TEST$\"", "$uri ~ /$",
            "-d " + ROOM + "/web", "-e " + ROOM + "/missing", "!-f $request_filename", "$is_args", "$http_cookie ~* \"in=1\"", "$request_uri ~* acme",
            "$http_upgrade", "$server_addr ~ 2001", "$host$uri ~ test/", "$http_host = a.test", "$server_name = a.test", "$invalid_referer",
            "$hostname = a.test",
            "$content_type", "$remote_user", "$document_uri = /", "$http_user_agent ~ bot",
            "$realpath_root ~ web", "$document_root = /var/www/html", "-f $realpath_root/there", "-x " + ROOM + "/web", "$1", "$1 = www.", "$sub", "$h = a",
            "$secure_link = \"\"", "$http_accept ~ html", "$scheme$host = httpa.test", "$is_args$args", "$limit_rate", "$nginx_version ~ ^1", "$arg_x != \"\"")

    def statement(self, within: bool = False, location: bool = False) -> str:
        """A directive of the rewrite module."""
        kind = self.chance.random()
        if kind < 0.4 and not within:
            inside = " ".join(self.statement(True, location) for _ in range(self.chance.choice((1, 1, 2))))
            return f"if ({self.condition()}) {{ {inside} }}"
        if kind < 0.55:
            if self.some(0.1):
                return self.any("set $args x=1;", "set $y $1;", "set $x $sub$h;", "set $x $m0;" if self.variables else "set $x $y;")
            return "set $x " + self.any("1", "0", "\"\"", "$host", "$scheme", "$arg_y", "\"${x}y\"", "$uri") + ";"
        if kind < 0.63:
            return "break;"
        if kind < 0.8:
            return "rewrite " + self.any("^/old(.*)$ /new$1", "^ https://$host$request_uri? permanent", "^/\\.well-known/(.*)$ /$1 last",
                                         "^(/.*)$ /fallback$1 last",
                                         "^/.well-known/acme-challenge/(.*)$ /tokens/$1 last", "^/(.*)$ /$1 break", "^/(.*)$ /$1?x=$host last", "^/x /y last",
                                         "^/tokens/(.*) /.well-known/acme-challenge/$1", "^(.*)$ $1? redirect", "^/\\.(.*) /$1", "^ /index.php last",
                                         "^/(?<rest>.*)$ /$rest", "[^/]+$ /tokens/$0 last", "^/\\.well-known/.*/(.*)$ /tokens/$1",
                                         "(?i)ACME /tokens/x redirect", "^/tokens/(.*)$ /.well-known/acme-challenge/$1 break",
                                         "^ http://$host/tokens/ redirect",
                                         "\"^/(.{1,200})$\" /$1", "^ $uri", "^/(\\.well-known)/ $scheme://$host/$1 redirect",
                                         "^ /tokens/$arg_x?", "\"(?<t>[A-Za-z0-9_-]{30,})$\" /tokens/$t last") + ";"
        if self.some(0.05):
            return "return 301 http://other.test$request_uri;"
        return "return " + self.any("301 https://$host$request_uri", "404", "301 http://www.a.test$request_uri", "200 ok", "301 https://a.test$request_uri",
                                    "302 /elsewhere", "444", "403", "301 $scheme://$host/tokens/", "https://$server_name$request_uri", "308 http://$host:8080/",
                                    "410", "301 https://$host", "418", "301 //www.a.test$request_uri", "301 $x", "302 http://$http_host$request_uri",
                                    "200 \"$x\"", "307 $uri/",
                                    "403 \"no\"", "500") + ";"

    # ---- locations

    def challenge(self) -> str:
        """A location for challenges, as certdrop has it or as somebody wrote it."""
        if self.some(0.35):
            return "include /etc/nginx/snippets/certdrop-challenge.conf;"
        name = self.one(PATH, f"^~ {PATH}", "/.well-known/", "^~ /.well-known/", f"~ ^{PATH}", "~ /\\.well-known", f"~ \"^{PATH}(?<token>[A-Za-z0-9_-]+)$\"",
                        f"~* ^{PATH}([a-z0-9_-]+)$", "^~ /.well-known/acme-challenge", "~ ^/\\.well-known/acme-challenge/(.{10,50})$")
        text = name.replace('"', "")
        if text.startswith("~"):
            files = self.any(f"root {ROOM}/web/linked;", f"alias {SPOOL}/$1;" if "(" in text else f"root {ROOM}/web/linked;",
                             f"alias {SPOOL}/$token;" if "token>" in text else "root /var/www/html;", f"alias {SPOOL}/;")
        elif text.endswith("acme-challenge/"):
            files = self.one(f"alias {SPOOL}/;", f"alias {SPOOL}//;", f"root {ROOM}/web/linked;", f"alias {ROOM}/web/acme/;", f"alias {SPOOL};",
                             "root /var/www/html;", "alias /var/spool/../spool/certdrop/challenges/;", "root /srv/acme;", "")
        else:
            files = self.any(f"root {ROOM}/web/linked;", "root /var/www/html;",
                             f"alias {ROOM}/web/linked/.well-known/;" if text.endswith("known/") else f"alias {SPOOL};")
        inside = [files] + [self.within() for _ in range(self.chance.choice((0, 0, 0, 1, 1, 2)))]
        self.chance.shuffle(inside)
        if self.some(0.08) and not text.startswith("~"):
            inside.append(f"location ~ {PATH}[A-Za-z] {{ {self.within()} }}")
        return f"location {name} {{ {' '.join(self.once([part for part in inside if part]))} }}"

    def within(self) -> str:
        """What stands in such a location."""
        if self.some(0.35):
            return self.statement(location=True)
        return self.one("default_type text/plain;", "try_files $uri =404;", "auth_basic off;", "allow all;", "auth_request off;", "deny all;", "internal;",
                        "empty_gif;", "limit_except GET { deny all; }", "limit_except POST { deny all; }", "try_files $uri $uri/ /index.php?$args;",
                        "satisfy any;",
                        "allow all; satisfy any;", "proxy_pass http://127.0.0.1:9;", "try_files $uri @fallback;", "disable_symlinks on from=/var/spool;",
                        "stub_status;", "error_page 404 = @fallback;", "deny 10.0.0.0/8; allow all;", "autoindex on;", "types { }", "return 200 $host;",
                        "limit_except GET POST { auth_basic x; }", "mirror /mirror;", "add_header Content-Type text/plain;", "disable_symlinks on;",
                        f"auth_basic x; auth_basic_user_file {ROOM}/users;", "limit_except PUT { proxy_pass http://127.0.0.1:9; }", "satisfy all;", "index x;",
                        "flv;", "mp4;", "try_files /tokens$uri $uri =404;", "try_files $uri /fallback$uri;", "try_files /missing =418;", "dav_methods PUT;",
                        f"if ($x) {{ root {ROOM}/web/linked; }}", "if ($host = a.test) { add_header X y; }",
                        "if ($scheme = http) { proxy_pass http://127.0.0.1:9; }",
                        "proxy_pass http://127.0.0.1:80;", "satisfy any; auth_request /auth;", "random_index on;", "error_page 405 404 =200 @fallback;",
                        "if (!-f $request_filename) { return 404; }", "if (-f $request_filename) { set $x 1; }", "auth_request /auth;", "ssi on;",
                        "allow 23.178.112.0/24; deny all;", "error_page 404 = @fallback; log_not_found off;",
                        "recursive_error_pages on; return 404;", "if ($request_uri ~ x$) { break; }",
                        "try_files $request_uri =404;", "try_files $document_uri @fallback;", "set $x 1; if ($x) { set $y 1; } if ($y) { return 403; }",
                        "rewrite ^/.well-known/acme-challenge/(.*) /$1; break;", "add_after_body /auth; addition_types *;",
                        "limit_except GET { allow 127.0.0.1; deny all; }", "disable_symlinks if_not_owner;")

    def locations(self) -> list[str]:
        """What a site has besides."""
        found = []
        for _ in range(self.chance.choice((0, 1, 1, 2, 3))):
            name = self.any("/", "/", "~ /\\.", "~ \\.php$", "/api/", "/tokens/", "^~ /fallback", "~* \\.(css|js)$", "^~ /", "~ ^/[a-z]", "= /index.php")
            inside = self.one("return 301 https://$host$request_uri;", "try_files $uri $uri/ =404;", "proxy_pass http://127.0.0.1:9;", "deny all;",
                              "return 404;", "try_files $uri $uri/ /index.php?$args;", f"root {ROOM}/web/linked;",
                              f"alias {SPOOL}/;" if name == "/tokens/" else "root /var/www/html;",
                              "fastcgi_pass 127.0.0.1:9;", "rewrite ^/(.*)$ /fallback/$1 last;", self.statement(location=True), "internal; root /srv;",
                              "return 204;")
            found.append(f"location {name} {{ {inside} }}")
        if self.some(0.12):
            inner = self.any(f"{self.statement(location=True)} ", "") + self.challenge()
            found.append(f"location {self.any('/', '^~ /', '/.well-known', '~ ^/')} {{ {self.setting()} {inner} }}")
        if self.some(0.1):
            files = self.any(f"alias {SPOOL}/$file;", f"root {ROOM}/web; try_files /acme/$file $uri =404;", f"alias {SPOOL}/$1;", "try_files $uri @fallback;",
                             f"root {SPOOL}; rewrite ^ /$1 break;")
            found.append(f"location ~ ^{PATH}(?<file>.*)$ {{ {files} }}")
        if self.some(0.5):
            answer = self.any("return 204;", "return 401;", "return 403;", "return 200;", "return 500;", "proxy_pass http://127.0.0.1:9;", "", "root /srv;")
            found.append(f"location = /auth {{ internal; {answer} }}")
        if self.some(0.6):
            instead = self.any("return 404;", f"root {ROOM}/web/linked;", "return 301 https://$host$request_uri;", "root /srv;",
                               "proxy_pass http://127.0.0.1:9;", "rewrite ^ /index.php last;", "rewrite ^/.well-known/(.*) /tokens/$1 last;",
                               f"root {ROOM}/web/linked; try_files $uri =404;", "error_page 404 =200 /fallback; return 404;")
            found.append(f"location @fallback {{ {instead} }}")
        if self.some(0.3):
            found.append("location /mirror { internal; return 200; }")
        return found
