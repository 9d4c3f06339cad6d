"""The reader of nginx's configuration: cut as nginx cuts it, and never at a loss for broken text."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time

import pytest

from certdrop.nginx import challenge, configuration, expression
from certdrop.nginx.configuration import Answers, Configuration, sources
from certdrop.nginx.syntax import Source, parse

DUMP = """\
nginx: the configuration file /etc/nginx/nginx.conf syntax is ok
# configuration file /etc/nginx/nginx.conf:
user www-data;
events { worker_connections 768; }
http {
    include mime.types;
    include /etc/nginx/sites-enabled/*;
}

# configuration file /etc/nginx/mime.types:
types { text/html html; }

# configuration file /etc/nginx/sites-enabled/b:
server {
    listen 80 default_server;
    server_name _;
}

# configuration file /etc/nginx/sites-enabled/a:
server {
    listen 80;
    listen [::]:80;
    server_name A.test www.a.test;
    include snippets/challenge.conf;
}
server {
    listen 443 ssl http2;
    server_name a.test;
    include /var/lib/certdrop/live/a.test/nginx.conf;
}

# configuration file /etc/nginx/snippets/challenge.conf:
location ^~ /.well-known/acme-challenge/ {
    location ~ "^/\\.well-known/acme-challenge/([A-Za-z0-9_-]{16,128})\\z" {
        alias /var/spool/certdrop/challenges/$1;
    }
}

# configuration file /var/lib/certdrop/live/a.test/nginx.conf:
ssl_certificate /var/lib/certdrop/sites/a.test/0002/fullchain.pem;
ssl_certificate_key /var/lib/certdrop/sites/a.test/0002/privkey.pem;

"""


def words(text: str) -> list[list[str]]:
    """Name and arguments of each directive at the top."""
    return [[one.name, *one.args] for one in parse(Source("/x", text)).top]


def servers(text: str) -> list[configuration.Server]:
    """The server blocks of one file that is the inside of http."""
    return Configuration([Source("/etc/nginx/nginx.conf", "http {\n" + text + "\n}\n")]).servers


def test_files_are_told_apart():
    """By nginx's headers; what stands before the first is no file's, and each text is as it is on disk."""
    found = sources(DUMP)
    assert [source.path for source in found] == [
        "/etc/nginx/nginx.conf", "/etc/nginx/mime.types", "/etc/nginx/sites-enabled/b", "/etc/nginx/sites-enabled/a", "/etc/nginx/snippets/challenge.conf",
        "/var/lib/certdrop/live/a.test/nginx.conf"]
    assert found[1].text == "types { text/html html; }\n"
    assert found[-1].text.endswith("privkey.pem;\n")


def test_servers_are_found_through_includes():
    """In the order of glob(3), with names in lower case and the place of each."""
    found = Configuration(sources(DUMP)).servers
    assert [(server.names, server.directive.place, sorted(server.ports())) for server in found] == [
        (["a.test", "www.a.test"], "/etc/nginx/sites-enabled/a:1", [80]), (["a.test"], "/etc/nginx/sites-enabled/a:7", [443]),
        (["_"], "/etc/nginx/sites-enabled/b:1", [80])]
    assert [one.value for one in found[1].all("ssl_certificate")] == ["/var/lib/certdrop/sites/a.test/0002/fullchain.pem"]


@pytest.mark.parametrize("text, expected", [
    ("a b c;", [["a", "b", "c"]]),
    ("a 'b c' \"d;{}\";", [["a", "b c", "d;{}"]]),
    ("a 'it\\'s' \"\\\"q\\\"\" \\;x;", [["a", "it's", '"q"', "\\;x"]]),
    ("# a;\nb; # c; d;\ne#f;", [["b"], ["e#f"]]),
    ("return 301 https://$host${request_uri}x;", [["return", "301", "https://$host${request_uri}x"]]),
    ("rewrite ^/a{2}$ /b;", [["rewrite", "^/a"], ]),
    ("a ~^x}y$;", [["a", "~^x}y$"]]),
    ("a\n  b\r\n\tc;", [["a", "b", "c"]]),
    ("content_by_lua_block { local x = { a = 1 }; ngx.say('x;') } b;", [["content_by_lua_block"], ["b"]]),
    ("", []), (";;;", []), ("}}}", []), ("a", []), ("a 'b", []), ("a \\", []), ("{", []), ("a {", [["a"]]),
    ("\0\x1b[31m a;", [["\0\x1b[31m", "a"]]),
])
def test_words_are_cut_as_nginx_cuts_them(text, expected):
    """Quotes, escapes, comments, variables in braces, Lua; and what is broken gives what there is."""
    assert words(text)[:len(expected) or None] == expected


def test_places_are_exact():
    """The offsets of a directive are its own text, over lines too, and its lines are counted from 1."""
    text = "a;\n\nserver {\n  ssl_certificate\n     /x; # why\n}\nb;\n"
    outer = parse(Source("/f", text)).top[1]
    (inner,) = outer.block or []
    assert (text[inner.start:inner.end], inner.line, inner.last, inner.place) == ("ssl_certificate\n     /x;", 4, 5, "/f:4")
    assert (text[outer.start:outer.end], outer.line, outer.last) == (text[4:-4], 3, 6)


@pytest.mark.parametrize("text", [
    "if x then ngx.say('}') end", 'ngx.say("{")', "-- it's a }\n", "--[[ } ]] x = 1",
    "x = [==[ }} ]] ]==]", "x = 'it\\'s }'", 't = { { "}" } }', "x = 5 --[==[ ]] } ]==]",
])
def test_braces_in_lua_do_not_end_a_block(text):
    """Those in its strings and comments are text."""
    found = parse(Source("/x", f"location / {{ content_by_lua_block {{ {text} }} b; }} c;")).top
    assert [one.name for one in found] == ["location", "c"] and [one.name for one in found[0].block or []] == ["content_by_lua_block", "b"]


@pytest.mark.parametrize("text", ["a " * 50_000, "#" * 50_000, "\"" * 50_001, "'\\" * 30_000, "a {" * 50_000, "${" * 50_000, "a#" * 50_000,
                                  "\\" * 50_001, "} " * 50_000, "a_by_lua_block { [==[" + "]=]" * 30_000, "a_by_lua_block { \"\\" * 10_000], ids=range(11))
def test_no_text_takes_long(text):
    """What has no end is read once, whatever it is made of."""
    before = time.process_time()
    parse(Source("/x", text))
    assert time.process_time() - before < 2


def test_what_is_deeper_than_is_read_is_known():
    """It is not passed over unsaid."""
    assert [parse(Source("/x", "a {" * depth + "}" * depth)).cut for depth in (60, 70)] == [False, True]


def test_forty_thousand_server_blocks():
    """Read in a second of processor time, and any of them is found at once; the garbage collector does not look through them again."""
    block = ("server {{\n listen 80;\n listen [::]:80;\n server_name s{0}.test www.s{0}.test;\n include x;\n"
             " location / {{\n return 301 https://$host$request_uri;\n }}\n}}\n")
    files = [Source("/n", "http {\n" + "".join(block.format(number) for number in range(40_000)) + "}"), Source("/x", "location /x { return 404; }")]
    before = time.process_time()
    config = Configuration(files)
    found = config.answers.find("[::1]", 80, "www.s39999.test")
    assert found and found.directive.line == 9 * 39_999 + 2 and [one.name for one in found.inside][-2:] == ["location", "location"]
    assert time.process_time() - before < 3                    # below 1 s on a machine of 2020
    assert gc.get_freeze_count() > 40_000
    before = time.process_time()
    assert ["return 404" in challenge.way(config, "127.0.0.1", f"s{number}.test").why for number in range(100)] == [False] * 100
    assert time.process_time() - before < 1                    # 0.06 s
    assert all(config.answers.find("127.0.0.1", 80, f"s{number}.test") is config.servers[number] for number in range(40_000))
    gc.unfreeze()


@pytest.mark.parametrize("args, expected", [
    (["80"], ("*", 80)), (["[::]:80"], ("[::]", 80)), (["127.0.0.1"], ("127.0.0.1", 80)), (["127.0.0.1:8080", "default_server"], ("127.0.0.1", 8080)),
    (["*:443", "ssl"], ("*", 443)), (["[2001:DB8::1]:443"], ("[2001:db8::1]", 443)), (["no-such-host:8000"], ("no-such-host", 8000)),
    (["unix:/run/x.sock"], ("unix:/run/x.sock", 0)), (["0.0.0.0:80"], ("*", 80)), (["a:b:c"], ("a:b:c", 0)), (["9" * 5000], ("9" * 5000, 80)),
    (["8000-8010"], ("*", 8000)), (["127.0.0.1:8000-8010"], ("127.0.0.1", 8000)), (["[0:0:0:0:0:0:0:1]:80"], ("[::1]", 80)), (["[0::0]:80"], ("[::]", 80)),
    (["[::1"], ("[::1", 0)), ([], ("*", 80)), (["*"], ("*", 80)),
])
def test_listen_is_understood(args, expected):
    """As nginx reads addresses and ports; nonsense is a place that nobody asks for."""
    assert configuration.listened(*args)[0][:2] == expected


def test_a_range_of_ports_and_a_name_of_this_hosts():
    """Challenges that come to a port within a range are answered there; what /etc/hosts says of a name are its addresses."""
    assert [one[:2] for one in configuration.listened("79-81")] == [("*", 79), ("*", 80)]
    assert [one[:2] for one in configuration.listened("127.0.0.1:80-500", "ssl")] == [("127.0.0.1", 80), ("127.0.0.1", 443)]
    assert ("127.0.0.1", 80) in [one[:2] for one in configuration.listened("localhost:80")]


def test_the_hosts_own_name():
    """nginx's $hostname, as a server name."""
    found = servers("server { server_name $hostname; }")
    assert found[0].names == [os.uname().nodename.lower()]


def test_a_block_without_listen_is_at_port_80():
    """nginx's default for root."""
    assert servers("server { server_name a.test; }")[0].listens == [configuration.Listen("*", 80, ())]


@pytest.mark.parametrize("name, line", [
    ("a.test", 3), ("www.a.test", 4), ("x.www.a.test", 5), ("y.a.test", 4), ("mail.b", 6), ("r12.test", 7), ("none.test", 2), ("A.TEST", 3), ("c.test", 8),
])
def test_the_name_decides_who_answers(name, line):
    """Exact, then the longest *.name, then name.*, then regular expressions in order, then the default."""
    found = Answers(servers("""server { listen 80 default_server; server_name _; }
server { listen 80; server_name a.test; }
server { listen 80; server_name *.a.test; }
server { listen 80; server_name *.www.a.test; }
server { listen 80; server_name mail.*; }
server { listen 80; server_name ~^r(?<n>\\d+)\\.test$; }
server { listen 80; server_name .c.test; }""")).find("192.0.2.1", 80, name)
    assert found and found.directive.line == line


@pytest.mark.parametrize("name, line", [("b.test", 3), ("x.b.test", 2)])
def test_a_name_with_a_dot_before_it_that_another_block_has(name, line):
    """It is passed over, for the names below it, too."""
    found = Answers(servers("server { listen 80; server_name _; }\nserver { listen 80; server_name b.test; }\nserver { listen 80; server_name .b.test; }"))
    assert found.find("192.0.2.1", 80, name).directive.line == line


@pytest.mark.parametrize("pattern", ["((((", "^(a+)+$", "([a-z.-]+/?)+[0-9]$"])
def test_an_expression_that_cannot_be_told(pattern):
    """It does not hang, nobody is said to answer, and names that come before expressions are not touched by it."""
    answers = Answers(servers(f"server {{ listen 80; server_name c.test ~{pattern}; }}"))
    assert answers.find("192.0.2.1", 80, "c.test")
    with pytest.raises(expression.Unknown):
        answers.find("192.0.2.1", 80, "a" * 60 + ".test")


def test_the_address_decides_first():
    """A block with this very address hides those at the wildcard; IPv6 has its own; and nobody may be there."""
    found = Answers(servers("""server { listen 80; server_name a.test; }
server { listen 192.0.2.1:80; server_name b.test; }
server { listen [::]:8080 ipv6only=off; }"""))

    def line(address, port):
        server = found.find(address, port, "a.test")
        return server.directive.line if server else None
    assert [line("192.0.2.1", 80), line("192.0.2.2", 80), line("[::1]", 80), line("192.0.2.2", 8080), line("[::1]", 8080)] == [3, 2, None, 4, 4]


def test_of_two_blocks_with_a_name_the_first_has_it():
    """nginx warns of a conflicting server name, and goes on so; the default is the one that is marked, else the first."""
    text = "server {{ listen 80; server_name x.test; }}\nserver {{ listen 80{}; server_name a.test; }}\nserver {{ listen 80; server_name a.test; }}"
    lines = [Answers(servers(text.format(mark))).find("192.0.2.1", 80, name).directive.line
             for mark in ("", " default_server") for name in ("a.test", "none.test")]
    assert lines == [3, 2, 3, 3]


def test_settings_come_down_from_http():
    """What a server block does not say itself."""
    config = Configuration([Source("/n", "http { ssl_protocols TLSv1; server { } server { ssl_protocols TLSv1.3; } }")])
    assert [[one.value for one in config.settings(server, "ssl_protocols")] for server in config.servers] == [["TLSv1"], ["TLSv1.3"]]


def test_includes_that_go_round_end():
    """Files that include each other, many times over; and very many of them."""
    loop = [Source("/n", "http { include a; include b; }"), Source("/a", "include b; include b; server { }"), Source("/b", "include a; include a;")]
    assert len(Configuration(loop).servers) == 3
    wide = [Source("/n", "http { include f0; }")] + [Source(f"/f{i}", f"include f{i + 1};\ninclude f{i + 1};\n") for i in range(60)]
    assert Configuration(wide).servers == []
    many = [Source("/n", "http { include s/*; }")] + [Source(f"/s/{i:03d}", "include t; ") for i in range(200)] + [Source("/t", "server { }")]
    assert len(Configuration(many).servers) == 200


def test_nothing_raises():
    """Cut anywhere, bytes changed anywhere, nested without end: there is always some answer."""
    chance = random.Random(1)
    for cut in range(0, len(DUMP), 7):
        Configuration(sources(DUMP[:cut]))
    for _ in range(300):
        text = list(DUMP)
        for _ in range(5):
            text[chance.randrange(len(text))] = chance.choice(list("{};\"'\\$#\n\0~ *[") + ["\udcff"])
        config = Configuration(sources("".join(text)))
        with contextlib.suppress(expression.Unknown):
            config.answers.find("127.0.0.1", 80, "a.test")
    Configuration([Source("/n", "http {" + "a {" * 100_000)])
    Configuration([Source("/n", "http { server {" + "\"" * 99_999)])
    assert Configuration([]).servers == [] and Configuration(sources("no dump at all")).servers == []


def test_a_header_within_a_file_does_not_replace_one():
    """Of two texts for the same path the first counts: it is nginx's own."""
    found = sources("# configuration file /n:\na;\n# configuration file /n:\nb;\n\n")
    assert found == [Source("/n", "a;")]
