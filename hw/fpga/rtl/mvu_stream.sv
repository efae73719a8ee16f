// Matrix-vector unit whose weights come by a stream: every word of PE x SIMD weights serves PIXELS pixels, one after the other,
// so a frame needs the weights once for every PIXELS pixels. A block of pixels is loaded (in beats of SIMD, as it comes), computed
// (weights in the order of dp_mvu: NF folds of SF words), and sent in the usual order (pixel by pixel) while the next block
// is loaded. The accumulators stand in the memory from which they are sent. PIXELS >= 2.
module dp_mvu_stream #(
  parameter int PE = 2, SIMD = 2, SF = 4, NF = 4, PIXELS = 8,
  parameter int WB = 4, AB = 8, ACC = 20,
  parameter bit A_SIGNED = 0,
  parameter bit PACK = 0,            // see dp_dot
  parameter int K = 16, GROUP = 1,
  parameter bit DSP = 0
) (
  input  logic clk, rst,
  input  logic [PE*SIMD*WB+SIMD*AB-1:0] s_data,  // weights above, pixels below
  input  logic [1:0] s_valid, output logic [1:0] s_ready,
  output logic [PE*ACC-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int IN = PIXELS * SF, OUT = PIXELS * NF;
  localparam int IW = $clog2(IN + 1), OW = $clog2(OUT + 1);
  localparam int PW = $clog2(PIXELS), FW = SF > 1 ? $clog2(SF) : 1, NW = NF > 1 ? $clog2(NF) : 1;
  localparam int SUM = WB + AB + $clog2(SIMD + 1);
  (* no_rw_check *) logic [SIMD*AB-1:0] pixels [IN];
  (* no_rw_check *) logic [PE*ACC-1:0] sums [OUT];

  // ---- a block: loaded and sent at the same time, then computed
  logic running;
  logic [IW-1:0] loaded;
  logic [OW-1:0] sent;               // of the block before; OUT: all
  logic v1, v2, v3;                  // the pipeline
  wire push = s_valid[0] && s_ready[0];
  assign s_ready[0] = !running && loaded != IW'(IN);
  wire start = !running && loaded == IW'(IN) && sent == OW'(OUT) && !m_valid;

  // ---- stage 0: which pixel, which weights
  logic [PW-1:0] p;  logic [FW-1:0] sf;  logic [NW-1:0] nf;
  logic [IW-1:0] from;               // p * SF + sf
  logic [OW-1:0] to;                 // p * NF + nf
  wire last_p = p == PW'(PIXELS-1), last_sf = sf == FW'(SF-1), last_nf = nf == NW'(NF-1);
  logic issuing;                     // the block has beats to issue
  wire go = issuing && (p != '0 || s_valid[1]);
  assign s_ready[1] = issuing && p == '0;

  logic [PE*SIMD*WB-1:0] w;
  logic [SIMD*AB-1:0] a;
  logic f1, f2, f3;                  // first beat of a sum
  logic [OW-1:0] to1, to2, to3;
  always_ff @(posedge clk) begin
    if (push) pixels[loaded] <= s_data[SIMD*AB-1:0];
    if (go) a <= pixels[from];
    if (go && p == '0) w <= s_data[SIMD*AB +: PE*SIMD*WB];
    f1 <= sf == '0; f2 <= f1; f3 <= f2;
    to1 <= to; to2 <= to1; to3 <= to2;
  end
  logic signed [SUM-1:0] sum [PE];
  dp_dot #(.PE(PE), .SIMD(SIMD), .WB(WB), .AB(AB), .A_SIGNED(A_SIGNED), .PACK(PACK), .K(K), .GROUP(GROUP), .DSP(DSP)) dot (.clk, .en(1'b1), .w, .a, .sum);

  // ---- the memory of sums: read for the pipeline, or to be sent
  wire draining = !running && sent != OW'(OUT);
  wire send = draining && (!m_valid || m_ready);
  logic [PE*ACC-1:0] q, total;
  always_comb
    for (int i = 0; i < PE; i++) total[i*ACC +: ACC] = ACC'(sum[i]) + (f3 ? '0 : q[i*ACC +: ACC]);
  assign m_data = q;
  wire [OW-1:0] read = running ? to2 : sent;
  always_ff @(posedge clk) begin
    if (v3) sums[to3] <= total;
    if (running || send) q <= sums[read];
  end

  always_ff @(posedge clk) begin
    if (rst) begin
      running <= 1'b0; issuing <= 1'b0; loaded <= '0; sent <= OW'(OUT); m_valid <= 1'b0;
      p <= '0; sf <= '0; nf <= '0; from <= '0; to <= '0; v1 <= 1'b0; v2 <= 1'b0; v3 <= 1'b0;
    end else begin
      v1 <= go; v2 <= v1; v3 <= v2;
      if (push) loaded <= loaded + 1'b1;
      if (start) begin
        running <= 1'b1; issuing <= 1'b1; loaded <= '0;
      end
      if (go) begin
        p <= last_p ? '0 : p + 1'b1;
        from <= !last_p ? from + IW'(SF) : last_sf ? '0 : IW'(sf) + 1'b1;
        to <= !last_p ? to + OW'(NF) : !last_sf ? OW'(nf) : last_nf ? '0 : OW'(nf) + 1'b1;
        if (last_p) sf <= last_sf ? '0 : sf + 1'b1;
        if (last_p && last_sf) nf <= last_nf ? '0 : nf + 1'b1;
        if (last_p && last_sf && last_nf) issuing <= 1'b0;
      end
      if (running && !issuing && !v1 && !v2 && !v3) begin
        running <= 1'b0; sent <= '0;
      end
      if (send) begin
        sent <= sent + 1'b1; m_valid <= 1'b1;
      end else if (m_ready) m_valid <= 1'b0;
    end
  end
endmodule
