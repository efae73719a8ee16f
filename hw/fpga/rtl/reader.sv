// Reads constants from memory for N channels through one AXI4 read port: every channel's region over and over, ahead of
// what is wanted. A region is a whole number of bursts. Beats wait in one block RAM, SLOTS[i] bursts of channel i (powers of two,
// none larger than the one before), and go to whichever channel wants one; the first channels come first.
// Space is reserved before a burst is asked for, so `rready` is always 1 and a channel that
// takes nothing holds up no other.
module dp_reader #(
  parameter int N = 2,
  parameter int PORT = 128,          // bits of a beat
  parameter int BURST = 8,           // beats of a burst
  parameter int DEPTH = 8,           // of all slots together, or more: a power of two
  parameter int MOST_SLOTS = 4,
  parameter logic [N-1:0][7:0] SLOTS = {N{8'd4}},  // bursts in hand
  parameter logic [N-1:0][23:0] FIRST = '0,   // first burst of every channel's region, from `base`
  parameter logic [N-1:0][23:0] BURSTS = '1   // how many it has
) (
  input  logic clk, rst,
  input  logic [39:0] base,          // byte address, a multiple of a burst; `go` when it is known
  input  logic go,
  output logic [39:0] m_axi_araddr, output logic [7:0] m_axi_arlen, output logic m_axi_arvalid, input logic m_axi_arready,
  input  logic [PORT-1:0] m_axi_rdata, input logic m_axi_rlast, m_axi_rvalid, output logic m_axi_rready,
  output logic [PORT-1:0] beat, output logic [N-1:0] load,  // a beat for one channel
  input  logic [N-1:0] want                                 // which channels have room for one
);
  localparam int CW = N > 1 ? $clog2(N) : 1, BW = $clog2(BURST), SW = $clog2(MOST_SLOTS), DW = $clog2(DEPTH), BYTES = $clog2(BURST * PORT / 8);
  localparam int MOST = 16, OW = $clog2(MOST); // bursts on their way
  typedef logic [CW-1:0] channel_t;

  function automatic channel_t first_of(input logic [N-1:0] set);
    first_of = '0;
    for (int i = N - 1; i >= 0; i--) if (set[i]) first_of = channel_t'(i);
  endfunction

  function automatic int slots_before(input int channel);
    slots_before = 0;
    for (int i = 0; i < channel; i++) slots_before += int'(SLOTS[i]);
  endfunction

  // ---- slots of a burst each per channel: taken (asked for or full), and which are full
  logic [N-1:0][SW:0] taken, full;
  logic [N-1:0][SW-1:0] write_slot, read_slot;
  logic [N-1:0][BW-1:0] read_beat;
  logic [N-1:0] room, held;
  wire [N-1:0][DW-1:0] write_at, read_at; // slots in the memory
  for (genvar i = 0; i < N; i++) begin : g_state
    localparam int BEFORE = slots_before(i);
    assign room[i] = taken[i] != (SW+1)'(SLOTS[i]);
    assign held[i] = full[i] != '0;
    assign write_at[i] = DW'(BEFORE) | DW'(write_slot[i]);
    assign read_at[i] = DW'(BEFORE) | DW'(read_slot[i]);
  end

  // ---- requests: choose, look up, ask
  logic [23:0] place [2**CW];        // next burst of every region
  logic [CW-1:0] order [MOST];       // channels of the bursts on their way
  logic [OW-1:0] order_in, order_out;
  logic [OW:0] away;
  logic chosen, asking;
  channel_t who;
  logic [23:0] at;
  logic [N-1:0] fresh;               // regions not begun
  wire choose = go && !chosen && !asking && |room && away != (OW+1)'(MOST);
  wire asked = m_axi_arvalid && m_axi_arready;
  wire [23:0] now = fresh[who] ? '0 : place[who];
  assign m_axi_arvalid = asking;
  assign m_axi_arlen = 8'(BURST - 1);
  assign m_axi_araddr = base + (40'(at) << BYTES);

  // ---- answers
  wire got = m_axi_rvalid && m_axi_rready;
  assign m_axi_rready = 1'b1;
  channel_t from;
  assign from = order[order_out];
  logic [BW-1:0] beat_in;
  wire whole = got && beat_in == BW'(BURST-1);
  (* ram_style = "block", no_rw_check *) logic [PORT-1:0] mem [DEPTH * BURST];

  // ---- beats to the channels
  wire [N-1:0] able = want & held & ~load;
  wire channel_t to = first_of(able);
  wire give = |able;
  wire done = give && read_beat[to] == BW'(BURST-1);
  always_ff @(posedge clk) begin
    if (got) mem[{write_at[from], beat_in}] <= m_axi_rdata;
    if (give) beat <= mem[{read_at[to], read_beat[to]}];
    if (choose) who <= first_of(room);
    if (chosen) begin
      at <= FIRST[who] + now;
      place[who] <= now == BURSTS[who] - 1'b1 ? '0 : now + 1'b1;
    end
    if (asked) order[order_in] <= who;
    if (rst) begin
      load <= '0; chosen <= 1'b0; asking <= 1'b0; fresh <= '1; away <= '0; order_in <= '0; order_out <= '0; beat_in <= '0;
      taken <= '0; full <= '0; write_slot <= '0; read_slot <= '0; read_beat <= '0;
    end else begin
      load <= '0;
      if (give) load[to] <= 1'b1;
      chosen <= choose;
      if (chosen) begin
        asking <= 1'b1; fresh[who] <= 1'b0;
      end else if (asked) asking <= 1'b0;
      if (asked) order_in <= order_in + 1'b1;
      if (whole) order_out <= order_out + 1'b1;
      away <= away + (OW+1)'(asked) - (OW+1)'(whole);
      if (got) beat_in <= whole ? '0 : beat_in + 1'b1;
      for (int i = 0; i < N; i++) begin
        taken[i] <= taken[i] + (SW+1)'(chosen && who == channel_t'(i)) - (SW+1)'(done && to == channel_t'(i));
        full[i] <= full[i] + (SW+1)'(whole && from == channel_t'(i)) - (SW+1)'(done && to == channel_t'(i));
        if (whole && from == channel_t'(i)) write_slot[i] <= (write_slot[i] + 1'b1) & SW'(SLOTS[i] - 1'b1);
        if (give && to == channel_t'(i)) read_beat[i] <= done ? '0 : read_beat[i] + 1'b1;
        if (done && to == channel_t'(i)) read_slot[i] <= (read_slot[i] + 1'b1) & SW'(SLOTS[i] - 1'b1);
      end
    end
  end
`ifndef SYNTHESIS
  always_ff @(posedge clk) if (!rst && got) begin
    assert (away != 0) else $error("%m: a beat that nobody asked for");
    assert (m_axi_rlast == (beat_in == BW'(BURST-1))) else $error("%m: a burst of another length");
  end
`endif
endmodule
