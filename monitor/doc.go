// Package monitor gives each action of an agent a risk from 0 to 100 before it
// is logged, and says why.
//
// # What it learns
//
// A Model is a fold of the log. For each agent, and for each job template (the
// agent and the job that its capability names), it counts which tools are
// used, which tool follows which, and with which values. A run is one
// operation: it is learned as a whole when it ends, with one vote for each
// tool, pair and value in it, and only if nothing in it looked wrong: no
// action of risk 40 or more, none refused as out of bounds, none that still
// awaits a review or that a reviewer denied. What an approved action used is
// signed in by the approval.
//
// # What it judges
//
// Harm is done by sinks: tools that write, execute or send. Reads are context,
// and are not scored. A tool is a read where the service that serves it
// declares it so; what nobody declares is a sink. For a sink the evidences
// are, in bits or as a flag:
//
//	tool        how unusual the tool is for the job and the agent
//	bigram      how unusual it is after the tool before it (Witten–Bell)
//	slot        a value never used in this place of this tool
//	unknown     a value that is neither in the task nor known: seen in this
//	            template, or in two others
//	domain      the same of a mail domain or host
//	fresh       a value that first appeared in the previous call's output
//	outside     the capability does not grant it
//
// The score is a constant plus the weighted evidences; each is one Factor of
// the verdict, and the points of all factors sum to the score exactly.
// Conformal calibration turns the score into a p-value against the highest
// scores of earlier harmless runs, and risk = 70·ln p / ln 0.02: 70 is what
// one harmless run in fifty reaches. Below 20 such runs this risk stays under
// 70, for nothing is known yet.
//
// Refusals are a channel of their own, which needs no history: a forbidden
// tool, an action out of scope, an operation that was never granted and what
// the server itself refused add up, fade with the half-life below, and give
// 100·(1 − 2^(−units/3)).
//
// The risk of an action is the higher of the two. The agent's risk is the
// highest of its actions', halved every ten minutes by the times of events. It
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
// the fold repeats it.
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
