package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// This file is a small language for nftables rules. A match is a list of
// expressions; a rule is matches and a verdict, one after another. Registers:
// plain compares use register 1, set keys are built from register 8 on
// (NFT_REG32_00), four bytes each.

type match = []expr.Any

const (
	regCmp = unix.NFT_REG_1
	regKey = unix.NFT_REG32_00
)

func cmpEq(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: regCmp, Data: data}
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func ifName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func metaIs(key expr.MetaKey, data []byte) match {
	return match{&expr.Meta{Key: key, Register: regCmp}, cmpEq(data)}
}

func metaNot(key expr.MetaKey, data []byte) match {
	return match{&expr.Meta{Key: key, Register: regCmp}, &expr.Cmp{Op: expr.CmpOpNeq, Register: regCmp, Data: data}}
}

func inFrom(name string) match    { return metaIs(expr.MetaKeyIIFNAME, ifName(name)) }
func inNotFrom(name string) match { return metaNot(expr.MetaKeyIIFNAME, ifName(name)) }
func outTo(name string) match     { return metaIs(expr.MetaKeyOIFNAME, ifName(name)) }
func outNotTo(name string) match  { return metaNot(expr.MetaKeyOIFNAME, ifName(name)) }

// etherType matches the frame's protocol; for netdev and bridge tables.
func etherType(t uint16) match { return metaIs(expr.MetaKeyPROTOCOL, be16(t)) }

// nfFamily matches the IP version; for inet tables.
func nfFamily(f int) match { return metaIs(expr.MetaKeyNFPROTO, []byte{byte(f)}) }

func l4Is(proto byte) match { return metaIs(expr.MetaKeyL4PROTO, []byte{proto}) }

// loadNet and loadL4 load header bytes into a register.
func loadNet(reg, off, n uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n}
}

func loadL4(reg, off, n uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: off, Len: n}
}

// l4Byte matches one byte of the transport header.
func l4Byte(off uint32, v byte) match { return match{loadL4(regCmp, off, 1), cmpEq([]byte{v})} }

func portIs(off uint32, port uint16) match { return match{loadL4(regCmp, off, 2), cmpEq(be16(port))} }

// tcpFlags matches TCP flags under a mask; not inverts.
func tcpFlags(mask, want byte, not bool) match {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	return match{
		loadL4(regCmp, 13, 1),
		&expr.Bitwise{SourceRegister: regCmp, DestRegister: regCmp, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: op, Register: regCmp, Data: []byte{want}},
	}
}

// header offsets and sizes of the addresses, by family.
func addrAt(f int) (src, dst, size uint32) {
	if f == unix.AF_INET {
		return 12, 16, 4
	}
	return 8, 24, 16
}

// addrIn matches the address at a network header offset against a prefix.
func addrIn(off uint32, p netip.Prefix) match {
	p = p.Masked()
	a := p.Addr().AsSlice()
	n := uint32(len(a))
	m := match{loadNet(regCmp, off, n)}
	if p.Bits() == 0 {
		return nil
	}
	if p.Bits() < len(a)*8 {
		m = append(m, &expr.Bitwise{
			SourceRegister: regCmp, DestRegister: regCmp, Len: n, Mask: ipNet(p).Mask, Xor: make([]byte, n),
		})
	}
	return append(m, cmpEq(a))
}

func srcIn(p netip.Prefix) match {
	off, _, _ := addrAt(family(p.Addr()))
	return addrIn(off, p)
}

func dstIn(p netip.Prefix) match {
	_, off, _ := addrAt(family(p.Addr()))
	return addrIn(off, p)
}

// markIs matches the packet's mark.
func markIs(m uint32) match { return metaIs(expr.MetaKeyMARK, host32(m)) }

// inSet matches the key in registers regKey… against a set.
func inSet(s *nftables.Set) match {
	return match{&expr.Lookup{SourceRegister: regKey, SetName: s.Name, SetID: s.ID}}
}

// learn puts the key in registers regKey… into a set or refreshes it.
func learn(s *nftables.Set, timeout time.Duration) match {
	return match{&expr.Dynset{
		SrcRegKey: regKey, SetName: s.Name, SetID: s.ID, Operation: uint32(unix.NFT_DYNSET_OP_UPDATE), Timeout: timeout,
	}}
}

func verdict(k expr.VerdictKind) match { return match{&expr.Verdict{Kind: k}} }

func accept() match { return verdict(expr.VerdictAccept) }

// dropCounted drops and counts under a named counter.
func dropCounted(name string) match {
	return append(count(name), verdict(expr.VerdictDrop)...)
}

func count(name string) match {
	return match{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name}}
}

// ruleset is one table under construction: everything is sent in one
// transaction, so that there is no moment without rules. Building the same
// table again replaces its rules and keeps sets (with what they learned) and
// counters.
type ruleset struct {
	c     *nftables.Conn
	table *nftables.Table
	chain *nftables.Chain
	sets  uint32 // how many; numbers them within the transaction
}

func newRuleset(c *nftables.Conn, f nftables.TableFamily, name string) *ruleset {
	return &ruleset{c: c, table: c.AddTable(&nftables.Table{Family: f, Name: name})}
}

// begin starts a base chain; the rules that follow go into it. dev is for
// netdev tables only.
func (r *ruleset) begin(name string, t nftables.ChainType, h *nftables.ChainHook, prio int32, dev string, policy nftables.ChainPolicy) {
	r.chain = r.c.AddChain(&nftables.Chain{
		Name: name, Table: r.table, Type: t, Hooknum: h, Priority: nftables.ChainPriorityRef(nftables.ChainPriority(prio)),
		Device: dev, Policy: &policy,
	})
	r.c.FlushChain(r.chain)
}

// rule adds a rule made of matches and a verdict.
func (r *ruleset) rule(parts ...match) {
	var e []expr.Any
	for _, p := range parts {
		e = append(e, p...)
	}
	r.c.AddRule(&nftables.Rule{Table: r.table, Chain: r.chain, Exprs: e})
}

func (r *ruleset) counter(name string) {
	r.c.AddObj(&nftables.NamedObj{Table: r.table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
}

// set adds a set whose key is the concatenation of types; data makes it a map.
func (r *ruleset) set(name string, size uint32, dynamic bool, data *nftables.SetDatatype, types ...nftables.SetDatatype) (*nftables.Set, error) {
	r.sets++
	s := &nftables.Set{
		// The library would take the number from a global that nothing guards.
		ID: r.sets, Table: r.table, Name: name, KeyType: types[0], Size: size, Dynamic: dynamic, HasTimeout: dynamic,
	}
	if len(types) > 1 {
		s.Concatenation, s.KeyType = true, nftables.MustConcatSetType(types...)
	}
	if data != nil {
		s.IsMap, s.DataType = true, *data
	}
	// The kernel makes room at once for the size that a set is created with
	// (nft_rhash_init), a megabyte for 65536. So create it small and raise the
	// bound afterwards; kernels before 6.5 keep the small one.
	for _, n := range []uint32{min(size, learnedFirst), size} {
		s.Size = n
		if err := r.c.AddSet(s, nil); err != nil {
			return nil, fmt.Errorf("nftables set %s: %w", name, err)
		}
		if n == size {
			break
		}
	}
	return s, nil
}

func (r *ruleset) commit() error {
	if err := r.c.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w", r.table.Name, err)
	}
	return nil
}

// delTable removes a table; one that is not there is no error.
func (c *Conn) delTable(f nftables.TableFamily, name string) error {
	n, err := c.filter()
	if err != nil {
		return err
	}
	n.DelTable(&nftables.Table{Family: f, Name: name})
	if err := gone(n.Flush()); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", name, err)
	}
	return nil
}

// Counter is one named counter of a guard.
type Counter struct{ Packets, Bytes uint64 }

// counters reads the named counters of a table.
func (c *Conn) counters(f nftables.TableFamily, name string) (map[string]Counter, error) {
	n, err := c.filter()
	if err != nil {
		return nil, err
	}
	objs, err := n.GetNamedObjects(&nftables.Table{Family: f, Name: name})
	if err != nil {
		return nil, fmt.Errorf("read counters of nftables table %s: %w", name, err)
	}
	out := map[string]Counter{}
	for _, o := range objs {
		no, ok := o.(*nftables.NamedObj)
		if !ok {
			continue
		}
		if v, ok := no.Obj.(*expr.Counter); ok {
			out[no.Name] = Counter{Packets: v.Packets, Bytes: v.Bytes}
		}
	}
	return out, nil
}

// ownTables lists the tables of the namespace whose names are ours.
func (c *Conn) ownTables() ([]*nftables.Table, error) {
	n, err := c.filter()
	if err != nil {
		return nil, err
	}
	ts, err := n.ListTables()
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	var out []*nftables.Table
	for _, t := range ts {
		if t.Name == insideTable || strings.HasPrefix(t.Name, outsidePrefix) {
			out = append(out, t)
		}
	}
	return out, nil
}
