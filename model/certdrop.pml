/* certdrop's protocol as DESIGN.md describes it: the spool, the recovery table of section 3, and nginx.   model/README.md explains.
 *
 * One site. Every statement that changes the disk is a step of its own: between any two the keeper may be killed, the issuer
 * may write a reply, and somebody may reload or restart nginx. The comments "row N" are the rows of the recovery table.
 * A mistake is compiled in with -DVARIANT_x; model/check knows which claim each of them must break.
 */

/* How far the search goes. */
#ifndef G
#define G        5              /* generations, at most 7: a set of them is a byte, a bit each */
#endif
#ifndef KEPT
#define KEPT     2              /* complete generations that are kept, 2 or 3; certdrop keeps three */
#endif
#ifndef CRASHES
#define CRASHES  1              /* kills of a keeper */
#endif
#ifndef VERBS
#define VERBS    0              /* rollbacks, and changes of the configuration, by the administrator */
#endif
#ifndef REMOVALS
#define REMOVALS 0              /* removals; each may be followed by an add */
#endif
#ifndef RENEWALS
#define RENEWALS 1              /* times that a certificate comes of age */
#endif
#ifndef UNFIT
#define UNFIT    0              /* accepted certificates that nginx does not take */
#endif
#ifndef OUTAGES
#define OUTAGES  0              /* times that somebody breaks nginx's configuration, elsewhere */
#endif
#ifndef LATE
#define LATE     0              /* reloads that do not show in time */
#endif
#ifndef DAMAGE
#define DAMAGE   0              /* times that a disk or a hand damages a generation, between two runs of a keeper */
#endif
#ifndef AGES
#define AGES     0              /* times that a certificate comes nearer to its end, between two runs of a keeper */
#endif
#ifndef EVIL
#define EVIL     255            /* writes of a hostile issuer; 255 for no end, 0 for an honest issuer */
#endif
#ifndef OTHERS
#define OTHERS   255            /* reloads and restarts by others; 255 for no end */
#endif

/* What is claimed. ONLY leaves one of the claims: so a variant must break the very claim that it is about. */
#define PAIR     1              /* nginx never reads a key and a chain that do not belong together */
#define THERE    2              /* nginx never finds a file missing: it can start at any moment */
#define LIVE     3              /* live always points to a complete generation with a matching pair */
#define PROVEN   4              /* a proven generation is not removed while it is live, and proven is what was shown */
#define ANSWER   5              /* what is accepted is for this request's key, came in answer to this number, and was never live before */
#define NUMBER   6              /* a number is never used twice */
#define BLAME    7              /* a certificate is withdrawn only where it is the certificate that nginx does not take */
#define UNDONE   8              /* a run that was not killed leaves nginx able to start, if there is a generation with which it can */
#define WISH     9              /* what the administrator said is never undone by itself: added stays added, a rollback goes back, no placeholder follows a certificate */
#define WHOLE    10             /* no service is tested or reloaded while live is damaged, live never moves to what is damaged, nothing is accepted for a damaged next */
#define ENDED    11             /* a run that was not killed leaves live on no certificate that has ended while an older one is good */
#define STALE    12             /* a reply that was held back never becomes live over a better one */
#ifdef ONLY
#define claim(name, what)  assert(name != ONLY || (what))
#else
#define claim(name, what)  assert(name == 0 || (what))
#endif

#define bit(g)         (1 << (g))
#define has(set, g)    (((set) >> (g)) & 1)
#define put(set, g)    set = (set) | bit(g)
#define drop(set, g)   set = (set) & ~bit(g)

/* THE DISK, which survives whoever is killed. */
byte dirs;                      /* sites/NAME/0001.. that exist */
byte key;                       /* privkey.pem is there */
byte conf;                      /* nginx.conf is there: the generation is complete */
byte withdrawn, wanted, standin;/* the markers `withdrawn`, `now`, `placeholder` */
byte keyof[G+1];                /* which key privkey.pem holds */
byte asked[G+1];                /* which key the request of this number is for; stays known when the request is gone */
byte chain[G+1];                /* the leaf in fullchain.pem, named by the request it was issued for; 0 for none */
byte live, proven, aside;       /* where the links point; 0 for no link */
byte bad;                       /* generations that are damaged: no longer what root wrote */
byte due, ending, ended;        /* leaves that are past their renewal, of these those that end soon, and of these those that have ended */
bit half;                       /* a temporary directory */
bit removed;                    /* sites/.removed-NAME */
bit site = 1;                   /* sites.d/NAME.toml */
bit kind;                       /* the configured kind of key; */
byte kinds;                     /* and the generations whose request is of the other kind */
byte retired;                   /* keeper/retired/NAME */
byte csr, now;                  /* requests/ */
byte reply, reply_to;           /* replies/: the leaf, and the number in the file's name. Only the newest matters: no other is ever read */
byte refused, refused_to;       /* root's notes: the refused reply, */
byte spent;                     /* leaves that were live and whose generation is gone, */
bit failed;                     /* and that one was withdrawn since the last one that was served */

#define OWN      (G + 1)        /* a reply that is no certificate for any key of root's */
#define ODD      (G + 2)        /* a reply that root does not even read: a link, too long, another's */

/* NGINX, and those who reload it. */
bit uses;                       /* its configuration includes live/NAME/nginx.conf */
bit broken;                     /* somebody's mistake elsewhere in its configuration */
byte unfit;                     /* generations that it does not take, though the judge accepted them */
byte shown;                     /* the generation in its memory; 0 for none, or not running */
bit want;                       /* a reload was asked for */
bit busy, cold;                 /* it reads its configuration; it was restarted, not reloaded */
byte reading;                   /* where the include led */

/* THE REST. */
byte lock, killed;              /* the process that holds the lock; the process that is killed */
bit renewal;                    /* the certificate has come of age */
bit exhausted;                       /* the search has no number left: this branch ends */
byte crashes, verbs, removals, renewals, evil, lates, others, outages, unfits, damages, ages;
byte stale;                     /* generations that were accepted though live was better: what the claims remember */
byte was;                       /* leaves that were ever live: what the claims remember, not the keeper */
byte used;                      /* numbers that were ever given: the same */
bit wish;                       /* the administrator has added the site: the same */
bit blip;                       /* somebody broke nginx in the midst of a switch: then nobody can tell whose fault it was */
byte gone;                      /* generations that a rollback went back past before they were ever live: the same */
byte top;                       /* the highest number in requests/ */

#define matches(g)  (has(dirs, g) && has(key, g) && has(conf, g) && !has(bad, g) && chain[g] && chain[g] <= G && asked[chain[g]] == keyof[g])
#define passes      (!broken && (!uses || (live && matches(live) && !has(unfit, live))))      /* nginx -t */
#define hurt        (conf & bad & ~withdrawn)              /* was complete, is damaged, is not withdrawn yet */
#define level(leaf) (3 - has(due, leaf) - has(ending, leaf) - has(ended, leaf))
#define worse(leaf) (has(due, leaf) && live && !has(standin, live) && level(leaf) < level(chain[live]))
#define outlasts(g, other) (has(conf, g) && !has(withdrawn | bad | standin, g) && !has(ended, chain[g]) && level(chain[g]) > level(chain[other]))
#define is_refused  (refused_to == reply_to && refused == reply)
#define is_settled  (exhausted || top == G || !site || (live && !has(standin, live) && !renewal && !has(wanted, top) \
		     && (!uses || (proven == live && shown == live))))

/* The mistakes that are one condition. Those that are a step stand where the step is. */
#ifdef VARIANT_NO_TEST_BEFORE
#define TESTS_BEFORE    0
#else
#define TESTS_BEFORE    1
#endif
#ifdef VARIANT_NO_TEST_AFTER
#define TESTS_AFTER     0
#else
#define TESTS_AFTER     1
#endif
#ifdef VARIANT_NO_HANDSHAKE
#define ASKS            0
#else
#define ASKS            1
#endif
#ifdef VARIANT_KEY_NOT_CHECKED
#define CHECKS_KEY      0
#else
#define CHECKS_KEY      1
#endif
#ifdef VARIANT_NO_NUMBER_IN_REPLY
#define ANSWERS         1
#else
#define ANSWERS         (reply_to == n)
#endif
#ifdef VARIANT_NOTE_TRUSTED
byte noted;                     /* "this one is installed" */
#define TO_DO           (noted != c)
#else
#define TO_DO           1
#endif
#ifdef VARIANT_PRUNE_LINKED
#define LINKED          0
#else
#define LINKED          (bit(live) | bit(proven))
#endif
#ifdef VARIANT_PLACEHOLDER_IS_NEWEST
#define STANDS_IN       0
#else
#define STANDS_IN       has(standin, c)
#endif
#ifdef VARIANT_ROW_13_STAYS
#define FALLBACK        0
#elif defined(VARIANT_ROW_12_STAYS)
#define FALLBACK        (to != live -> 0 : (proven && proven != to -> proven : lower))
#else
#define FALLBACK        (proven == live -> 0 : (proven -> proven : (lower -> lower : (to != live -> to : 0))))
#endif
#ifdef VARIANT_EVERY_FAILURE_COUNTS
#define NOTES_ALL       1
#else
#define NOTES_ALL       0
#endif
#ifdef VARIANT_REMOVE_DOES_NOT_LOOK_FIRST
#define UNTESTED        was_aside      /* no live link, so nothing to test */
#else
#define UNTESTED        0
#endif
#ifdef VARIANT_ASIDE_WHILE_TESTING
#define EXCUSED         0
#else
#define EXCUSED         (aside != 0)   /* a removal is tested, or was killed then: README.md, "Known limits" */
#endif
#ifdef VARIANT_READER_IS_SLOW
#define HAS_READ(g)     1
#else
#define HAS_READ(g)     !(busy && reading == g)        /* an assumption: reading a configuration takes less time than a switch and a prune */
#endif
#ifdef VARIANT_REFUSAL_KNOWN_BY_CONTENT
#define ISSUER_SEES     (refused != ODD)       /* root notes the hash of nothing; the issuer hashes what lies there, and waits for root */
#else
#define ISSUER_SEES     1
#endif

#ifdef VARIANT_DAMAGED_LIVE_STAYS
#define NO_LIVE         (!live)
#else
#define NO_LIVE         (!live || has(bad, live))
#endif
#ifdef VARIANT_DAMAGED_PROVEN_STAYS
#define ASTRAY          0
#else
#define ASTRAY          (proven && has(bad, proven))
#endif
#ifdef VARIANT_DAMAGED_NEXT_STAYS
#define NEXT_HURT       0
#else
#define NEXT_HURT       has(bad, n)
#endif
#ifdef VARIANT_DAMAGED_IS_NEWEST
#define IS_WHOLE(g)     1
#else
#define IS_WHOLE(g)     !has(bad, g)
#endif
#ifdef VARIANT_LOST_NOT_WANTED
#define LOST            0
#else
#define LOST            (hurt >> (c + 1))              /* the damaged one is newer than C */
#endif
#ifdef VARIANT_NEVER_GOES_BACK
#define GOES_BACK       0
#else
#define GOES_BACK       has(ending, chain[c])
#endif
#ifdef VARIANT_STALE_TAKEN
#define LATE_REPLY      0
#else
#define LATE_REPLY      worse(r)
#endif

/* The keeper's sight, taken anew before every step: N, C, the generations to remove, and the row of the table that applies. */
inline look() { d_step {
	n = 0; c = 0; below = 0; third = 0; lower = 0; had = 0;
	for (i : 1 .. G) {
		if :: has(dirs, i) -> n = i :: else fi;
		if :: has(conf, i) && !has(withdrawn, i) && IS_WHOLE(i) -> third = (KEPT > 2 -> below : 0); below = c; c = i :: else fi;
		if :: has(conf, i) && !has(withdrawn, i) && !has(bad, i) && i < live -> lower = i :: else fi;
		if :: has(conf, i) && chain[i] && chain[i] <= G -> put(had, chain[i]) :: else fi
	}
	i = 0;
	old = dirs & ~(1 | bit(n) | bit(c) | bit(below) | bit(third) | LINKED);
#if AGES
	best = c;
	for (i : 1 .. G) {
		if :: GOES_BACK && outlasts(i, c) && (best == c || level(chain[i]) >= level(chain[best])) -> best = i :: else fi
	}
	i = 0; c = best; best = 0;
#endif
	row = (removed                                                     -> 1 :
	      (!site                                                       -> 14 :
	      (aside                                                       -> 2 :
	      (half                                                        -> 3 :
	      (!c                                                          -> 4 :
	      (NO_LIVE                                                     -> 5 :
	      (ASTRAY                                                      -> 18 :
	      (has(conf, n)                                                -> 6 :
	      (NEXT_HURT                                                   -> 15 :
	      (has(kinds, n) != kind                                       -> 7 :
	      (LOST && !has(wanted, n)                                     -> 16 :
	      (hurt                                                        -> 17 :
	      (!has(csr, n) || (has(wanted, n) && !has(now, n))            -> 8 :
	      ((csr & ~bit(n)) || (now & ~(bit(n) & wanted))               -> 9 :
	      (old                                                         -> 10 :
	      (reply && ANSWERS && !(refused_to == n && refused == reply) && !judged  -> 11 :
	      (c != live && !STANDS_IN && c != tried && TO_DO && !has(ended, chain[c])  -> 12 :
	      (c == live && c != proven && !has(standin, c) && c != tried && TO_DO && !has(ended, chain[c])  -> 13 :
	                                                                      14))))))))))))))))))
} }

/* A number for a new generation. Never one that was used: not even by a site of this name that was removed. */
inline new_number() {
	d_step {
		m = 0;
		for (i : 1 .. G) { if :: has(dirs, i) -> m = i :: else fi }
		i = 0;
#ifndef VARIANT_NUMBER_FORGOTTEN
		m = (retired > m -> retired : m);
#endif
		m++
	}
	if :: m > G -> exhausted = 1; false :: else fi              /* the search ends here, with the lock held */
}

/* live := g, in one rename. */
inline move(g) {
	atomic {
		live = g;
		if :: g && chain[g] <= G -> put(was, chain[g]) :: else fi;
		claim(LIVE, matches(live));
		claim(WHOLE, !has(bad, live));
		claim(STALE, !has(stale, live));
		claim(WISH, !has(gone, live))
	}
}

/* A next generation: key and request in a temporary directory, then one rename. */
inline make_next(urgent) {
	half = 1;
#ifdef VARIANT_KEY_FIRST
	atomic { new_number(); keyof[live] = m };              /* the new key goes where the old one was, and its certificate will follow */
#endif
	atomic {
		new_number();
		half = 0; put(dirs, m); put(key, m); chain[m] = 0;
		keyof[m] = m;
#ifdef CARRY
		if :: c && !has(standin, c) -> keyof[m] = keyof[c] :: true fi;      /* key_max_age lets the key live on, or not */
#endif
		asked[m] = keyof[m];
		if :: urgent -> put(wanted, m) :: else fi;
		if :: kind -> put(kinds, m) :: else fi;
		claim(NUMBER, !has(used, m)); put(used, m); m = 0
	}
}

/* A generation disappears: in one rename, so that no half of it is ever taken for a whole. What was live is noted before. */
inline destroy(g) {
	claim(PROVEN, !(g == live && g == proven));
#ifndef VARIANT_SPENT_NOTED_LATE
	atomic { if :: has(conf, g) && chain[g] && chain[g] <= G -> put(spent, chain[g]) :: else fi };
#endif
#ifdef VARIANT_PRUNE_IN_PLACE
	drop(key, g);
	if :: drop(withdrawn, g); drop(conf, g) :: drop(conf, g); drop(withdrawn, g) fi;      /* in the order of the directory */
#endif
	atomic {
		HAS_READ(g);
		claim(LIVE, g != live);
		drop(dirs, g); drop(key, g); drop(conf, g); drop(withdrawn, g); drop(wanted, g); drop(standin, g); drop(unfit, g); drop(kinds, g); drop(bad, g); drop(stale, g);
		keyof[g] = 0; chain[g] = 0; half = 1               /* .old-000g, which row 3 sweeps */
	}
}

/* Rows 12 and 13: move; test; reload; served? Where the test fails, or a try failed before: back; test; move; test. Whether it is known to have failed
   before is left open: beside a site for which it is, no other is tried before the test, either. */
inline use_newest() {
	atomic { to = c; back = live; before = shown; blip = 0; claim(WHOLE, !live || !has(bad, live)) };
#ifdef VARIANT_NOTE_TRUSTED
	noted = to;
#endif
	if
	:: to != live ->
		claim(WISH, !has(standin, to)); move(to);
		if :: atomic { passes || !TESTS_AFTER -> m = 1 } :: else -> move(back) fi
	:: true
	fi;
	if
	:: atomic { !m && !passes && TESTS_BEFORE -> tried = to; back = FALLBACK; failed = (NOTES_ALL -> 1 : failed) };
		if
		:: back -> move(back); want = 1                /* live is not proven: a killed run may have moved it, untested. Whose fault */
		:: else                                        /* it is, row 12 finds out; else not the certificate's: nothing moves */
		fi
	:: else ->
		if :: to != live -> claim(WISH, !has(standin, to)); move(to) :: else fi;
		if
		:: !m && !passes && TESTS_AFTER ->
			if :: back != to -> move(back) :: else fi;
			if
			:: passes && back != to && !failed ->          /* good without it, bad with it, for the first time: ask for another */
				claim(BLAME, has(unfit, to) || blip);
#ifdef VARIANT_NOTED_BEFORE_WITHDRAWN
				failed = 1;
#endif
				make_next(1);
				put(withdrawn, to);
				failed = 1
			:: atomic { else -> tried = to; failed = (NOTES_ALL -> 1 : failed) }
			fi;
			want = 1
		:: else ->
			atomic { want = 1; m = 0 };                    /* reload, and ask with a handshake until it shows, or for a while */
			if
			:: atomic { !ASKS -> proven = to; claim(PROVEN, shown == to) }
			:: atomic { ASKS && !want && !busy && uses && shown == to -> proven = to; failed = 0 }
			:: atomic { ASKS && !want && !busy && !(uses && shown == to) -> m = 1 }
			:: atomic { ASKS && want && lates < LATE -> lates++; m = 1 }
			fi;
			if
			:: m && proven && proven != to && before == proven -> move(proven); want = 1                   /* going back helps */
			:: else
			fi;
			if :: atomic { m -> tried = to; m = 0 } :: else fi                                              /* and then that is noted */
		fi
	fi;
	atomic { to = 0; back = 0; before = 0 }
}

/* Row 11: one read, one judgement, and only then the generation is written; nginx.conf last. */
inline take() {
	r = reply;                                             /* the one safe read */
	if
	:: r && (!CHECKS_KEY || (r <= G && asked[r] == keyof[n])) && !has(spent | had, r) && !has(ended, r) && !LATE_REPLY && n < G ->
#ifdef VARIANT_READ_TWICE
		r = reply;                                     /* once to judge it, once more to install it */
#endif
		claim(ANSWER, r && r <= G && asked[r] == keyof[n] && !has(was, r) && reply_to == n);
#ifdef VARIANT_IN_PLACE
		chain[live] = 0; chain[live] = r;              /* acme_tiny > domain.crt */
#endif
#ifdef VARIANT_CONF_FIRST
		put(conf, n);
#endif
		chain[n] = r;
		atomic { put(conf, n); claim(WHOLE, !has(bad, n)); if :: worse(r) -> put(stale, n) :: else fi; if :: unfits < UNFIT -> unfits++; put(unfit, n) :: true fi };
		atomic { refused = 0; refused_to = 0; r = 0;
#ifdef VARIANT_SPENT_NOTED_LATE
			put(spent, chain[n])                   /* the only time that it is noted: a run killed before this never will */
#endif
		}
	:: else ->
#ifdef VARIANT_NO_MEMORY
		judged = 1;                                    /* every run judges it again; and nobody tells the issuer */
#else
		atomic { refused = r; refused_to = n };
#endif
		r = 0
	fi
}

/* The administrator's verbs. Each ends in a run of the table. */
inline remember_gone() {
	for (i : live + 1 .. G) { if :: has(conf, i) -> put(gone, i) :: else fi };
	i = 0
}

inline rollback() {
	atomic { back = 0;
		for (i : 1 .. G) { if :: has(conf, i) && !has(withdrawn, i) && !has(standin, i) && i < live -> back = i :: else fi }
		i = 0
	}
	if
	:: back ->
		verbs++;
		make_next(0);
#ifdef VARIANT_ROLLBACK_MARKS_UPWARDS
		m = back + 1;
		do :: m <= G -> if :: has(conf, m) -> atomic { put(withdrawn, m); remember_gone() } :: else fi; m++ :: else -> break od;
#else
		m = G;                                             /* the newest first: killed in between, it goes at least not forward */
		do :: m > back -> if :: has(conf, m) -> atomic { put(withdrawn, m); remember_gone() } :: else fi; m-- :: else -> break od;
#endif
		m = 0; back = 0
	:: else
	fi
}

inline remove() {
	removals++;
#ifndef VARIANT_REMOVE_DOES_NOT_LOOK_FIRST
	if :: aside -> atomic { live = aside; aside = 0 } :: else fi;          /* row 2 */
#endif
	if :: live -> atomic { aside = live; live = 0 } :: else fi;
	if
	:: atomic { aside && uses && !UNTESTED -> live = aside; aside = 0 }      /* its test fails: still in use */
	:: else ->
		claim(THERE, !uses);
		atomic { for (i : retired + 1 .. G) { if :: has(dirs, i) -> retired = i :: else fi }; i = 0 };
		csr = 0; now = 0;
		atomic { removed = 1; wish = 0 }                   /* the point of no return */
	fi
}

inline finish_removal() {
	claim(WISH, !wish);
	site = 0; aside = 0; proven = 0;
	atomic { refused = 0; refused_to = 0; spent = 0; failed = 0 };
	atomic {
		HAS_READ(reading);
		dirs = 0; key = 0; conf = 0; withdrawn = 0; wanted = 0; standin = 0; unfit = 0; kinds = 0; bad = 0; half = 0; removed = 0;
		for (i : 1 .. G) { keyof[i] = 0; chain[i] = 0 }
		i = 0
	}
}

proctype keeper() {
	byte n, c, best, below, third, lower, had, old, row, i, m, r, to, back, before, tried;
	bit was_aside, judged;
	do
	:: {
#ifdef VARIANT_NO_LOCK
		skip;
#else
		atomic { lock == 0 && !exhausted -> lock = _pid };
#endif
		atomic { was_aside = (aside != 0); tried = 0 };
		if
		:: verbs < VERBS && site && !removed -> atomic { look() }; rollback()
		:: verbs < VERBS && site && !removed && kinds == 0 -> verbs++; kind = 1                  /* the configuration is edited */
		:: removals < REMOVALS && site && !removed -> remove()
		:: removals && !site && !wish ->
#ifndef VARIANT_ADD_DOES_NOT_LOOK_FIRST
			if :: removed -> finish_removal() :: else fi;
#endif
			atomic { site = 1; wish = 1 }
		:: true
		fi;
		do
		:: atomic { look();
			if
			:: row == 14 -> break
			:: else
			fi };
			if
			:: row == 1 -> finish_removal()
			:: row == 2 -> atomic { live = aside; aside = 0 }
			:: row == 3 -> half = 0
			:: row == 4 -> half = 1; atomic { new_number(); half = 0; put(dirs, m); put(key, m); put(conf, m); put(standin, m);
					keyof[m] = m; asked[m] = m; chain[m] = m; claim(NUMBER, !has(used, m)); put(used, m); m = 0 }
			:: row == 5 -> move(c)
			:: row == 6 -> make_next(has(standin, c))
			:: row == 7 -> make_next(1)
			:: row == 15 -> make_next(has(wanted, n) || has(standin, c))                             /* 7a */
			:: row == 16 -> put(wanted, n)
			:: row == 17 -> atomic { m = 1; do :: has(hurt, m) -> break :: else -> m++ od; put(withdrawn, m); m = 0 }
			:: row == 18 -> proven = 0                                                               /* 7b */
			:: row == 8 -> atomic { if :: !has(csr, n) -> put(csr, n); top = n :: else -> put(now, n) fi }
			:: row == 9 -> atomic { if :: csr & ~bit(n) -> csr = bit(n) :: else -> now = now & bit(n) & wanted fi }
			:: row == 10 -> atomic { m = 0; do :: has(old, m) && m -> break :: else -> m++ od }; destroy(m); m = 0
			:: row == 11 -> take()
			:: row == 12 || row == 13 -> use_newest()
			fi
		od;
		claim(UNDONE, !uses || broken || passes || !(proven && matches(proven) && !has(unfit, proven)));
#if AGES
		d_step {
			m = 0;
			for (i : 1 .. G) { if :: has(conf, i) && !has(withdrawn | bad | standin | unfit, i) && !has(ending, chain[i]) -> m = i :: else fi }
			i = 0
		}
		claim(ENDED, !(uses && !broken && live && has(ended, chain[live]) && m));
		m = 0;
#endif
		atomic { n = 0; c = 0; below = 0; third = 0; lower = 0; had = 0; old = 0; row = 0; tried = 0; was_aside = 0; judged = 0;
			if :: lock == _pid -> lock = 0 :: else fi }
	} unless {
		atomic { killed == _pid -> killed = 0; if :: lock == _pid -> lock = 0 :: else fi;
			n = 0; c = 0; below = 0; third = 0; lower = 0; had = 0; old = 0; row = 0; i = 0; m = 0; r = 0; to = 0; back = 0; before = 0; tried = 0; was_aside = 0; judged = 0 }
	}
	od
}

/* kill -9, power, the out-of-memory killer: between any two steps. */
proctype killer() {
	do
	:: atomic { crashes < CRASHES && lock && !killed -> crashes++; killed = lock }
	:: crashes == CRASHES -> break
	od
}

/* The issuer. Honest, it answers the newest request when that is due, and asks again when root refused. Hostile, it writes what it likes. */
proctype issuer() {
	byte r;
end:	do
	:: atomic { has(csr, top) && top < G && (reply_to != top || reply == 0 || (is_refused && ISSUER_SEES)) &&
			(has(now, top) || renewal || (is_refused && reply_to == top)) -> reply = top; reply_to = top; renewal = 0 }
	:: atomic { EVIL && (EVIL == 255 || evil < EVIL) && has(csr, top) ->
			if :: EVIL < 255 -> evil++ :: else fi;
			if :: select(r : 0 .. OWN) :: EVIL < 255 -> r = ODD fi;
			if
			:: (r == 0 || r > G || (has(used, r) && !has(standin, r) && r <= top)) && (r != top || top < G) -> reply = r; reply_to = top
			:: else
			fi;
			r = 0 }
	od
}

inline include() {
	reading = (uses -> live : 0);
	claim(THERE, !uses || reading || broken || EXCUSED)
}

inline read_files() {
	if
	:: broken || (reading && has(unfit | bad, reading)) -> shown = (cold -> 0 : shown)
	:: else ->
#ifdef VARIANT_TWO_PATHS
		claim(PAIR, !reading || !live || asked[chain[reading]] == keyof[live]);      /* live/NAME/fullchain.pem, then live/NAME/privkey.pem */
#endif
		claim(THERE, !reading || (has(dirs, reading) && has(key, reading) && chain[reading]));
		claim(PAIR, !reading || !chain[reading] || !has(key, reading) || asked[chain[reading]] == keyof[reading]);
		shown = (reading || cold -> reading : (uses -> shown : 0))
	fi;
	busy = 0; cold = 0; reading = 0
}

/* nginx reads the include when it is reloaded by the keeper, or reloaded or restarted by anybody, at any moment; then the files that it names. */
proctype nginx() {
end:	do
	:: atomic { want && !busy -> want = 0; busy = 1; cold = 0; include() }
	:: atomic { !want && !busy && uses && (OTHERS == 255 || others < OTHERS || (!shown && passes)) ->
			busy = 1; include(); if :: cold = 0 :: cold = 1 fi; if :: OTHERS < 255 && others < OTHERS -> others++ :: else fi }
	:: atomic { busy -> d_step { read_files() } }
	od
}

/* Time, and people: certificates come of age, somebody breaks nginx's configuration and mends it, a site is taken into it and out of it. */
proctype world() {
	byte g;
end:	do
	:: atomic { renewals < RENEWALS && live && !has(standin, live) && !renewal -> renewals++; renewal = 1 }
	:: atomic { !broken && outages < OUTAGES -> outages++; broken = 1; blip = 1 }
	:: broken -> broken = 0
	:: atomic { !uses && live && !aside && !removed && removals == 0 -> uses = 1 }
	:: atomic { damages < DAMAGE && !lock && !killed -> damages++;
			select(g : 1 .. G);
			if :: has(dirs, g) && !has(withdrawn | bad, g) -> put(bad, g) :: else fi;
			g = 0 }
	:: atomic { ages < AGES && !lock && !killed -> ages++;
			select(g : 1 .. G);
			if :: has(dirs, g) && !has(standin, g) && g <= top ->
				put(due, g);
				if :: true :: put(ending, g) :: put(ending, g); put(ended, g) fi
			:: else
			fi;
			g = 0 }
	:: atomic { REMOVALS && uses && live -> uses = 0 }
	od
}

#ifndef KEEPERS
#define KEEPERS 1
#endif
init {
	atomic {
		wish = 1;
		run keeper();
		if :: KEEPERS > 1 -> run keeper() :: else fi;
		run killer(); run issuer(); run nginx(); run world()
	}
}

#ifdef LIVENESS
/* Every due site is served at last, and stays so. */
ltl served { <>[] is_settled }
#endif
