// Package monitor gives each action of an agent a risk from 0 to 100 before it
// is logged, and says why.
//
// # What it learns
//
// A Model is a fold of the log. For each agent, and for each job template (the
// agent and the job that its capability names), it counts which tools are
// used, which tool follows which and stands beside which, how often in a run,
// with which values, and from where these came: the task, or the output of which
// tool. A run is one operation: it is learned as a whole when it ends, with one
// vote for each tool, pair and value in it, and only if nothing in it looked
// wrong: no action of risk 40 or more, none refused as forbidden, none that
// still awaits a review or that a reviewer denied. What an approved action used
// is signed in by the approval. A tool, a place or a source that the agent never
// used counts as a first of its verb: who writes under another name each week
// has done so before.
//
// # What it judges
//
// Harm is done by sinks: tools that write, execute or send. Reads are context,
// and are not scored. A tool is a read where the service that serves it
// declares it so; what nobody declares is a sink. For a sink the evidences
// are, in bits, six at most, or as a share of one:
//
//	new_tool    a tool new to a job that is known: how rare that is for this tool
//	tool        how unusual the tool is for the job and the agent
//	similar     the same, of jobs whose tasks use like words
//	bigram      how unusual it is after the tool before it (Witten–Bell)
//	together    how unusual it is beside the tools that the run used
//	repeat      how unusual it is to use it once more in a run
//	shape       how unusual the names of its arguments are, for this tool
//	slot        an unknown value from an output: how rare that is in this place
//	unknown     a value that is neither in the task nor known: seen in this
//	            template, or in two others
//	tainted     an unknown value that an output brought
//	recipient   the same, where it says where something goes
//	unused      a value that an output brought, and no sink used before
//	displaced   an unknown recipient, where the task names another of its form
//	domain      an unknown mail domain or host
//	fresh       a value that the newest output brought
//	origin      how unusual it is to fill this place from that source: from where
//	            the chain of values began, if one output led to the next
//	intent      how little the task's words speak of a tool new to the job
//	outside     the capability does not grant it
//	rare        the same: how rarely harmless runs try it without a grant
//	beyond      the same: how little the task's words speak of it
//	credit      all that it names stands in the task; this alone speaks for it
//
// A value is as strange as its words are not the task's: unknown, tainted,
// recipient, unused and slot weigh less where the task speaks of it.
//
// The score is a constant plus the weighted evidences; each is one Factor of
// the verdict, and the points of all factors sum to the score exactly. From risk
// 40 on, factors say in words what was observed and expected.
// Conformal calibration turns the score into a p-value against the highest
// scores of earlier harmless runs, and risk = 70·ln p / ln 0.02: 70 is what
// one harmless run in fifty reaches. Each run calibrates by what its job knew
// of it, and once more as if its job were new: a new job is held against the
// latter. Below 20 such runs this risk stays under 70, for nothing is known yet,
// and below 153 under 90: that one run in 154 comes so far is more than they can
// say. The runs of the whole fleet stand in for sixty more of an agent's own; and
// above the 95th percentile risk rises the slower the fewer runs are there.
//
// Refusals are a channel of their own, which needs no history: a forbidden
// tool, an action out of scope, an operation that was never granted and what
// the server itself refused add up, fade with the half-life below, and give
// 100·(1 − 2^(−units/3)).
//
// What an agent does is one thing, how much another: its pace, its slowest
// answer, its errors and what it spends are channels too, each held against
// the highest values of earlier harmless runs, see channel. And the surprise of
// its runs is summed up, for the low and slow.
//
// Who is declared outside (a classifier, an endpoint detection, an identity
// provider) may say that an agent is more, or less, at risk, by so many points
// of risk as it is declared with. The newest of each source and event counts and
// fades with the half-life; of one source the worst and the best count, and all
// sources add up, within 0 and 100. This needs no history, and stands beside what
// the agent did: it can pause and suspend by itself, and can't lower what
// behaviour says. No run under a signal of 40 or more teaches.
//
// The risk of an action is the highest of these, signals apart. The agent's risk is the
// highest of its actions', halved every ten minutes by the times of events, or
// what outside signals say, if that is more. It
// is one number for all operations of an agent: an agent can't shed it by
// giving a capability up. Thresholds, 70 and 90 by default, pause and suspend.
//
// # Guarantees
//
// A verdict is a pure function of the events up to its AsOf, the action (its
// kind, agent, operation, subject, capability, time and body) and nothing
// else. All arithmetic is on integers, no result depends on the order of a
// map, a clock or chance: replaying the log gives the same bytes on any
// machine (Replay). What the capability check at intake said does not enter;
// the fold repeats it. A Snapshot is exactly the fold up to an event: a restart
// changes no byte. What another version of the model judged keeps the risk that
// it had, and is scored anew: calibration holds scores of one version.
//
// Memory for each agent is bounded, see the constants max…; what is over a
// bound is forgotten, oldest first. Reading a body is linear and bounded; a
// body that goes past a bound counts as one with an unknown value, so that
// padding hides nothing.
//
// # Non-goals
//
// The monitor decides nothing that must be exact: it can be surprised, and it
// can be wrong. Capabilities and locks are exact; they are checked elsewhere.
package monitor
